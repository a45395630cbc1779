package wire

import "github.com/cellvisor/cellvisor/ident"

// What a jailed worker asks serve for, since it cannot get it by itself.

// WorkerDial asks serve for a connection to another part of the VM, which a jailed worker cannot make. Serve connects to WorkerHandSocket, sends
// one message, the number of the request as eight bytes, little endian, with the connection's descriptor or, behind the number, why there is
// none, and hangs up.
type WorkerDial struct {
	ID   uint64 `json:"id"`
	Addr string `json:"addr"` // page or replica plane of a part of this VM
}

// WorkerOpenDisk asks serve for the files of a copy of one of the VM's disks, which a jailed worker cannot open. They come as a connection does, with
// three descriptors (image, sums, journal), and behind the number a byte that is 1 if the image is a link to somebody's file.
type WorkerOpenDisk struct {
	ID    uint64      `json:"id"`
	Disk  string      `json:"disk"`            // its name
	Bytes ident.Bytes `json:"bytes,omitempty"` // of a new copy; 0: it must be there
	Link  bool        `json:"link,omitempty"`  // a new copy is a link to the disk's source
}

// WorkerJail says how a worker is confined once it is set up.
type WorkerJail struct {
	UID uint32 `json:"uid"` // whom it becomes if it is root
	GID uint32 `json:"gid"`
}
