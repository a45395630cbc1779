package wire

import "github.com/cellvisor/cellvisor/ident"

// The control protocol between a serve process and the worker processes that it supervises. A worker listens on the Unix socket
// CtlSocket in its own directory; any later serve of the same server connects to it and goes on (adoption). Each message is one JSON
// frame (see WriteJSON); exactly one pointer field of the union is set.

// Names of the files in a worker's directory, <data>/workers/<vmid>-<vm epoch of creation>/.
const (
	WorkerSpecFile    = "spec.json"   // WorkerSpec, written by serve before the worker starts
	WorkerCtlSocket   = "ctl.sock"    // the worker listens here
	WorkerConsoleFile = "console.log" // released console bytes, written by the home part's worker
	WorkerOutputFile  = "output.log"  // released output records, one decimal number a line, written by the home part's worker
	WorkerLogFile     = "worker.log"  // the worker's own log
	WorkerPagingFile  = "paging"      // unlinked as soon as it is open
	WorkerHandSocket  = "hand.sock"   // a jailed worker takes connections to its peers here, see WorkerDial
	WorkerSaveSocket  = "save.sock"   // what a part has of its VM, which stands still, is read here, see WorkerSaveAsk
)

// WorkerSpec is what a worker is told once, at its start.
type WorkerSpec struct {
	ClusterID   string            `json:"cluster_id"`
	Server      ident.ServerID    `json:"server"`
	ServerName  ident.ServerName  `json:"server_name"`
	Cell        ident.CellName    `json:"cell"`
	Incarnation ident.Incarnation `json:"incarnation"`
	VM          ident.VMID        `json:"vm"`
	Name        string            `json:"name"`
	Part        ident.Part        `json:"part"`
	VCPUs       int               `json:"vcpus"`       // of the whole VM
	LocalVCPUs  []ident.VCPU      `json:"local_vcpus"` // those that start on this part
	MemoryBytes ident.Bytes       `json:"memory_bytes"`
	PayloadPath string            `json:"payload_path"` // a file readable by the worker; only the home part needs it
	Builtin     string            `json:"builtin"`      // or the name of a built-in payload
	Args        string            `json:"args"`
	OnLossTouch bool              `json:"on_loss_touch"`
	ListenHost  string            `json:"listen_host"`            // host part of the page-plane address, "127.0.0.1"
	Secret      string            `json:"secret"`                 // of this VM, hex: both sides of a page-plane connection prove that they know it
	IdleSleep   bool              `json:"idle_sleep,omitempty"`   // let idle CPUs sleep while pages travel
	ScrubMicros ident.Micros      `json:"scrub_micros,omitempty"` // from one check of all copies of disks here to the next; 0: none
	Seal        bool              `json:"seal,omitempty"`         // page traffic of this part is encrypted
	Jail        *WorkerJail       `json:"jail,omitempty"`         // nil: not confined
	Standby     bool              `json:"standby,omitempty"`      // holds a replica of the VM and runs nothing until it has to take over
	Options     map[string]string `json:"options,omitempty"`

	Lends bool `json:"lends,omitempty"` // no part of a VM: the process that lends memory of this server, see ToLender

	Linux *WorkerLinux `json:"linux,omitempty"` // the payload file is a Linux kernel

	Memory *WorkerMemory `json:"memory,omitempty"` // what the part may hold at first; nil: all that its VM has, always

	Disks   []WorkerDisk `json:"disks,omitempty"`
	DiskDir string       `json:"disk_dir,omitempty"` // where this server keeps its copies of disks, one directory each

	SavedPath string `json:"saved_path,omitempty"` // of a saved VM that the guest is loaded from at first, instead of its image; home only
}

// WorkerLinux is what a Linux kernel, the payload file, is started with.
type WorkerLinux struct {
	InitrdPath string `json:"initrd_path,omitempty"`
	Cmdline    string `json:"cmdline"`
	CPU        string `json:"cpu"` // processor model

	Nets []WorkerNet `json:"nets,omitempty"`
}

// WorkerNet is a network card: on a segment of the built-in switch, or on a TAP interface.
type WorkerNet struct {
	Switch string `json:"switch,omitempty"`
	TAP    string `json:"tap,omitempty"`
	MAC    string `json:"mac"`
}

// WorkerPeers says who else is on the segments of the built-in switch that the VM is on. A later one takes the place of an earlier one.
type WorkerPeers struct {
	Segments []WorkerSegment `json:"segments"`
}

// WorkerSegment is a segment with the ports of other VMs on it.
type WorkerSegment struct {
	Name  string       `json:"name"`
	Peers []WorkerPort `json:"peers"`
}

// WorkerPort is another VM's place on a segment. Key is known to the two workers only.
type WorkerPort struct {
	VM   ident.VMID `json:"vm"`
	Addr string     `json:"addr"`
	Key  []byte     `json:"key"`
}

// WorkerDisk is a disk of the VM.
type WorkerDisk struct {
	Name     string      `json:"name"`
	Dir      string      `json:"dir"`              // of its copies, in the servers' directories of disks
	Source   string      `json:"source,omitempty"` // image of a new disk, a path on the home part's server
	Bytes    ident.Bytes `json:"bytes,omitempty"`  // size of a new disk without an image
	Cache    string      `json:"cache"`            // "writeback", "writethrough" or "unsafe"
	ReadOnly bool        `json:"read_only,omitempty"`
	Mirrors  int         `json:"mirrors,omitempty"` // it is to have so many copies besides home's, though the VM has no replicas

	Use       uint64 `json:"use,omitempty"`       // number of this use, to be written into the copy
	Confirmed uint64 `json:"confirmed,omitempty"` // number of an earlier use that the copy must have, or a later one, to be used by home; 0: it may be new
}

// WorkerMember is one live part of a VM.
type WorkerMember struct {
	Part   ident.Part       `json:"part"`
	Server ident.ServerID   `json:"server"`
	Name   ident.ServerName `json:"name"`
	Addr   string           `json:"addr"` // page plane, host:port
	VCPUs  []ident.VCPU     `json:"vcpus,omitempty"`

	ReplicaAddr string `json:"replica_addr,omitempty"` // replica plane, host:port
	Level       Level  `json:"level,omitempty"`        // that it has announced
	Slots       int    `json:"slots,omitempty"`        // of its server; 0: not known
}

// ToWorker is a message from serve to a worker.
type ToWorker struct {
	Lease   *WorkerLease   `json:"lease,omitempty"`
	Members *WorkerMembers `json:"members,omitempty"`
	Protect *WorkerProtect `json:"protect,omitempty"`
	Switch  *WorkerSwitch  `json:"switch,omitempty"`
	Hand    *WorkerHand    `json:"hand,omitempty"`
	Stop    *WorkerStop    `json:"stop,omitempty"`
	Pause   *WorkerPause   `json:"pause,omitempty"`
	PageMap *WorkerMapAsk  `json:"page_map,omitempty"`
	Typed   *WorkerTyped   `json:"typed,omitempty"`
	Faults  *WorkerFaults  `json:"faults,omitempty"`
	Peers   *WorkerPeers   `json:"peers,omitempty"`
	Memory  *WorkerMemory  `json:"memory,omitempty"`
	Lenders *WorkerLenders `json:"lenders,omitempty"`
}

// WorkerFaults is what a drill breaks at a worker, in place of what was broken before.
type WorkerFaults struct {
	Links      []WorkerLinkFault `json:"links,omitempty"`
	LastMillis int               `json:"last_millis"` // unless told again, they end by themselves after this long
	Seed       uint64            `json:"seed"`
	Crash      uint64            `json:"crash,omitempty"` // rises by one for each crash of the guest that is wanted
}

// WorkerLinkFault is what happens to the connections with another server's workers.
type WorkerLinkFault struct {
	Server       ident.ServerID `json:"server"`
	Cut          bool           `json:"cut,omitempty"`
	DelayMillis  int            `json:"delay_millis,omitempty"`
	JitterMillis int            `json:"jitter_millis,omitempty"`
	LossPermille int            `json:"loss_permille,omitempty"`
}

// WorkerMembers says who belongs to the VM in an epoch. The first one starts the VM; a later one, with a higher epoch, takes the place
// of the former: parts that are missing from it are gone for good.
type WorkerMembers struct {
	Epoch   ident.Epoch    `json:"epoch"`
	Fresh   bool           `json:"fresh"` // Epoch is the first since the guest booted: no page was ever granted
	Home    ident.Part     `json:"home"`
	Members []WorkerMember `json:"members"`

	// Restore takes the VM back to the last checkpoint that the standby part Image holds complete: Image becomes a member and home, every
	// member gives up what it has of the guest, and runs the vCPUs that Members gives it from their captured state.
	Restore bool       `json:"restore,omitempty"`
	Image   ident.Part `json:"image,omitempty"`

	// Fallback are other standbys that the VM can go back to: until they have a later checkpoint, Image lets no output leave that they may not
	// know of.
	Fallback ident.PartSet `json:"fallback,omitempty"`

	// Booted is the epoch in which the guest booted last. A part that runs an earlier boot gives up what it has of the guest: memory is Zero
	// again, home loads the image anew, and every vCPU begins at the start. Console and output go on.
	Booted ident.Epoch `json:"booted,omitempty"`
}

// WorkerProtect says which standby parts hold replicas of the VM from now on. None: the VM is unprotected, output leaves at once. Seq rises
// with each change; an older one is ignored. It is sent to members and standbys alike.
type WorkerProtect struct {
	Seq              uint64         `json:"seq"`
	Members          []WorkerMember `json:"members"` // members and standbys, with their replica-plane addresses
	Standbys         ident.PartSet  `json:"standbys"`
	Mirrors          ident.PartSet  `json:"mirrors,omitempty"` // standbys that hold the VM's disks only
	Home             ident.Part     `json:"home"`
	CheckpointMillis int            `json:"checkpoint_millis"` // between cuts; 0: adaptive
	Kept             bool           `json:"kept,omitempty"`    // the VM is to survive losses; else a standby is there for a move
}

// WorkerSwitch asks home for a switchover under protection Seq: the guest is to stop for good at a last checkpoint, which all standbys hold. Home
// answers with WorkerSwitched, and the VM stays stopped until it goes on elsewhere, or until the next WorkerProtect says that it stays.
type WorkerSwitch struct {
	Seq uint64 `json:"seq"`
}

// WorkerStop ends the worker: vCPUs stop, files are flushed, the process exits.
type WorkerStop struct {
	Reason string `json:"reason"`
	Final  bool   `json:"final,omitempty"` // the VM has ended for good with this part as its home: output that is held back leaves
}

// WorkerSaveAsk is what serve says at WorkerSaveSocket: the part is to write what it has of the VM, which stands still since change Seq of its pauses, as
// a stream of SaveRecords. Whole: the part is home, and has all but other parts' vCPUs.
type WorkerSaveAsk struct {
	Seq   uint64 `json:"seq"`
	Whole bool   `json:"whole"`
}

// WorkerPause stops (On) or continues the vCPUs of this part.
type WorkerPause struct {
	On  bool   `json:"on"`
	Seq uint64 `json:"seq"` // of the change; an older one is ignored
}

// WorkerPaused is the answer: this part's guest stands still, or may go on. It is repeated on each new connection.
type WorkerPaused struct {
	Seq uint64 `json:"seq"`
}

// MaxTypedBytes bounds WorkerTyped.Data.
const MaxTypedBytes = 4096

// WorkerTyped is input for the guest's serial port. The worker answers with WorkerTook of the same number.
type WorkerTyped struct {
	Seq  uint64 `json:"seq"`
	Data []byte `json:"data"`
}

// WorkerTook tells for how much of a WorkerTyped there was room.
type WorkerTook struct {
	Seq   uint64 `json:"seq"`
	Bytes int    `json:"bytes"`
}

// FromWorker is a message from a worker to serve. An empty one says that the worker lives.
type FromWorker struct {
	Ready     *WorkerReady     `json:"ready,omitempty"`
	Ended     *WorkerEnded     `json:"ended,omitempty"`
	Hint      *WorkerHint      `json:"hint,omitempty"`
	Fenced    *WorkerFenced    `json:"fenced,omitempty"`
	Protected *WorkerProtected `json:"protected,omitempty"`
	Restored  *WorkerRestored  `json:"restored,omitempty"`
	Switched  *WorkerSwitched  `json:"switched,omitempty"`
	Handed    *WorkerHanded    `json:"handed,omitempty"`
	Wish      *WorkerWish      `json:"wish,omitempty"`
	Stalled   *WorkerStalled   `json:"stalled,omitempty"`
	Stats     *WorkerStats     `json:"stats,omitempty"`
	Disks     *WorkerDisks     `json:"disks,omitempty"`
	PageMap   *WorkerPageMap   `json:"page_map,omitempty"`
	Took      *WorkerTook      `json:"took,omitempty"`
	Dial      *WorkerDial      `json:"dial,omitempty"`
	OpenDisk  *WorkerOpenDisk  `json:"open_disk,omitempty"`
	Paused    *WorkerPaused    `json:"paused,omitempty"`
}

// WorkerReady is the first message on each connection: who the worker is, where its page plane listens, and the epoch it runs under
// (0 before the first WorkerMembers).
type WorkerReady struct {
	VM        ident.VMID  `json:"vm"`
	Part      ident.Part  `json:"part"`
	PID       int         `json:"pid"`
	StartTime uint64      `json:"start_time"` // field 22 of /proc/PID/stat, tells a reused PID from this process
	PageAddr  string      `json:"page_addr"`
	Replica   string      `json:"replica_addr,omitempty"` // replica plane
	Epoch     ident.Epoch `json:"epoch"`
	NetAddr   string      `json:"net_addr,omitempty"` // of its ports on the built-in switch
	Level     Level       `json:"level,omitempty"`    // what it knows
	Turns     bool        `json:"turns,omitempty"`    // it understands SliceOrder.Next
}

// WorkerEnded reports that the VM ended as seen from this part. It is repeated on each new connection until serve says Stop.
type WorkerEnded struct {
	State      string `json:"state"` // "exited", "failed" or "lost"
	ExitStatus uint32 `json:"exit_status"`
	Reason     string `json:"reason"`
	Registers  string `json:"registers,omitempty"` // a dump for people, when the guest failed
	Host       bool   `json:"host,omitempty"`      // the worker or its host failed, not the guest: a protected VM goes on elsewhere

	// Crash says that the guest failed by itself. Then this is not the end before serve says Stop: members of a later boot start it again.
	Crash    bool         `json:"crash,omitempty"`
	Booted   ident.Epoch  `json:"booted,omitempty"`    // of a crash: the boot that it ended
	UpMicros ident.Micros `json:"up_micros,omitempty"` // of a crash: how long this part's vCPUs had run since
}

// WorkerDisks is home's word that its copies of the VM's disks are open and carry the numbers of this use, and any part's word on what was wrong with
// blocks of its copies.
type WorkerDisks struct {
	Opened   bool   `json:"opened,omitempty"`
	Damaged  string `json:"damaged,omitempty"`  // for people
	Repaired string `json:"repaired,omitempty"` // for people
	Disk     string `json:"disk,omitempty"`     // that these are about
}

// WorkerHint says that a peer part does not answer, or that its connection was reset. A hint decides nothing.
type WorkerHint struct {
	Part  ident.Part `json:"part"`
	Reset bool       `json:"reset"` // the connection was closed by the other side, not merely silent

	GiveUp bool   `json:"give_up,omitempty"` // home's wish that the VM goes on without that part, which it has not reached for long
	Reason string `json:"reason,omitempty"`
}

// WorkerProtected is home's word that all standbys of Protect number Seq hold a complete checkpoint, and that output is held back until the
// checkpoint after it is safe. From then on the VM survives the loss of its members.
type WorkerProtected struct {
	Seq        uint64 `json:"seq"`
	Checkpoint uint64 `json:"checkpoint"`
}

// WorkerSwitched is home's word that the VM stands still at a checkpoint that all standbys of Protect number Seq hold.
type WorkerSwitched struct {
	Seq        uint64       `json:"seq"`
	Checkpoint uint64       `json:"checkpoint"`
	CutMicros  ident.Micros `json:"cut_micros"` // from the first vCPU's stop until all standbys had it
}

// WorkerRestored is the new home's word that the VM runs again, with the span of each stage since it was told.
type WorkerRestored struct {
	Epoch        ident.Epoch  `json:"epoch"`
	Checkpoint   uint64       `json:"checkpoint"`
	RemapMicros  ident.Micros `json:"remap_micros"`
	ResumeMicros ident.Micros `json:"resume_micros"`
	SinceMicros  ident.Micros `json:"since_micros,omitempty"` // from when the checkpoint was complete here until the VM ran
}

// WorkerStalled is home's word that it paused the guest because it holds back as much output as it may (On), or that the guest goes on.
type WorkerStalled struct {
	On         bool  `json:"on"`
	LimitBytes int64 `json:"limit_bytes"`
}

// WorkerMapAsk asks which pages are held here, summed up by regions of so many pages.
type WorkerMapAsk struct {
	Token          uint64 `json:"token"` // comes back with the answer
	Pages          uint64 `json:"pages"` // of the VM's memory
	PagesPerRegion uint64 `json:"pages_per_region"`
}

// WorkerMapRegions bounds the regions of one WorkerPageMap.
const WorkerMapRegions = 4096

// WorkerPageMap is the answer. A part that holds all of the VM, or a replica of it, has all of its pages in Modified.
type WorkerPageMap struct {
	Token    uint64   `json:"token"`
	Shared   []uint32 `json:"shared"`
	Modified []uint32 `json:"modified"`
}

// WorkerStats are counters since the worker's start, sent about once a second.
type WorkerStats struct {
	RemoteReads     uint64       `json:"remote_reads"`
	RemoteWrites    uint64       `json:"remote_writes"`
	LocalFaults     uint64       `json:"local_faults"`
	PagesIn         uint64       `json:"pages_in"`
	PagesOut        uint64       `json:"pages_out"`
	ResidentBytes   ident.Bytes  `json:"resident_bytes"` // guest memory held here
	VCPUExits       uint64       `json:"vcpu_exits"`
	Checkpoints     uint64       `json:"checkpoints,omitempty"`
	CutMicros       ident.Micros `json:"cut_micros,omitempty"`        // how long the last cut paused the guest
	DirtyPages      uint64       `json:"dirty_pages,omitempty"`       // of the last checkpoint, at this part
	SyncPermille    int          `json:"sync_permille,omitempty"`     // of the first full copy to new standbys
	EveryMicros     ident.Micros `json:"checkpoint_micros,omitempty"` // between the last two cuts
	CutMicrosSum    ident.Micros `json:"cut_micros_sum,omitempty"`    // of all cuts
	DirtyPagesSum   uint64       `json:"dirty_pages_sum,omitempty"`   // of all checkpoints, at this part
	DiskReadBytes   uint64       `json:"disk_read_bytes,omitempty"`   // at home: read from disks,
	DiskCachedBytes uint64       `json:"disk_cached_bytes,omitempty"` // and from memory that is known to hold the blocks
	HeldBytes       uint64       `json:"held_bytes,omitempty"`        // output that waits for a checkpoint to be safe
	LagMicros       ident.Micros `json:"lag_micros,omitempty"`        // since the cut of the last checkpoint that all standbys hold
	CutMedian       ident.Micros `json:"cut_median_micros,omitempty"` // of the pauses of the last few hundred cuts
	CutP99          ident.Micros `json:"cut_p99_micros,omitempty"`
	StopMicrosSum   ident.Micros `json:"stop_micros_sum,omitempty"` // of CutMicrosSum: until all vCPUs had stopped,
	TakeMicrosSum   ident.Micros `json:"take_micros_sum,omitempty"` // and to capture; the rest is letting go
	StopP99         ident.Micros `json:"stop_p99_micros,omitempty"`
	TakeP99         ident.Micros `json:"take_p99_micros,omitempty"`
	SafeAfter       ident.Micros `json:"safe_after_micros,omitempty"` // from the last cut until all standbys had it
	PagesWhole      uint64       `json:"pages_whole,omitempty"`       // of DirtyPagesSum
	PagesChanged    uint64       `json:"pages_changed,omitempty"`
	PagesZero       uint64       `json:"pages_zero,omitempty"`
	PagesSame       uint64       `json:"pages_same,omitempty"`
	PagesOnDisk     uint64       `json:"pages_on_disk,omitempty"`
	PagesLeft       uint64       `json:"pages_left,omitempty"`      // at a standby: that it leaves to its copies of the disks now
	ShareBytesSum   uint64       `json:"share_bytes_sum,omitempty"` // of all shares, on the wire to one standby

	Paging   *WorkerPaging   `json:"paging,omitempty"`
	Scrub    *WorkerScrub    `json:"scrub,omitempty"`
	Locality *WorkerLocality `json:"locality,omitempty"`

	RunMicros  ident.Micros `json:"run_micros"`            // summed over vCPUs
	SlotMicros ident.Micros `json:"slot_micros,omitempty"` // that the gang was not held
	CPUMicros  ident.Micros `json:"cpu_micros,omitempty"`  // CPU time of the vCPUs' threads
	TurnMicros ident.Micros `json:"turn_micros,omitempty"` // of a CPU, that its vCPUs' threads used to go from turn to turn
	IdleMicros ident.Micros `json:"idle_micros,omitempty"` // that the vCPUs were out of their gang, summed up
	At         ident.Micros `json:"at,omitempty"`          // when these figures were taken
}
