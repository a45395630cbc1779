package cases

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"testing"

	"github.com/cellvisor/cellvisor/vmm/machine"
)

// TestDisk612 writes and verifies 64 MiB on ext4 on a disk of ours, and looks at the image from outside afterwards.
func TestDisk612(t *testing.T) { diskCase(t, "6.12") }

func TestDisk61(t *testing.T) {
	long(t)
	diskCase(t, "6.1")
}

func diskCase(t *testing.T, version string) {
	const size = 96 << 20
	disk, path := withDisk(t, size, "data")
	raw, rawPath := withDisk(t, 1<<20, "raw")
	g := startGuest(t, "vmlinux-"+version, initrd(t, version, `
[ $(cat /sys/block/vda/serial) = data ] || echo BAD serial $(cat /sys/block/vda/serial)
[ $(cat /sys/block/vda/size) = 196608 ] || echo BAD size
mke2fs -F /dev/vda >/dev/null 2>&1 || echo BAD mke2fs
mount -t ext4 /dev/vda /mnt || echo BAD mount
dd if=/dev/urandom of=/tmp/seed bs=1M count=4 2>/dev/null
i=0; while [ $i -lt 16 ]; do cat /tmp/seed; i=$((i+1)); done >/mnt/a || echo BAD write
sync
sum1=$(sha256sum </mnt/a)
umount /mnt; echo 3 >/proc/sys/vm/drop_caches; mount -t ext4 /dev/vda /mnt || echo BAD remount
sum2=$(sha256sum </mnt/a)
[ "$sum1" = "$sum2" ] && echo SAME || echo BAD sums $sum1 $sum2
umount /mnt
yes cellvisor | dd of=/dev/vdb bs=4k count=16 iflag=fullblock conv=fsync 2>/dev/null
echo RAW $(dd if=/dev/vdb bs=64k count=1 2>/dev/null | sha256sum)
poweroff -f`, "virtio_blk"), disk, raw)
	g.finish(t, machine.PoweredOff)
	g.mustPrint(t, "SAME")
	b, err := os.ReadFile(rawPath)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b[:64<<10])
	g.mustPrint(t, "RAW "+hex.EncodeToString(sum[:]))
	if !bytes.HasPrefix(b, []byte("cellvisor\n")) {
		t.Error("the image does not hold what the guest wrote")
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	if c := g.Board.Counters(); c.Broken != 0 {
		t.Errorf("a device broke: %+v", c)
	}
}

// TestConsoleEntropy612 uses the virtio console and the source of random numbers.
func TestConsoleEntropy612(t *testing.T) {
	long(t)
	hvc := newConsole()
	var typed func([]byte) int
	g := startGuest(t, "vmlinux-6.12", initrd(t, "6.12", `
[ "$(cat /sys/class/misc/hw_random/rng_current)" = virtio_rng.0 ] || echo BAD rng $(cat /sys/class/misc/hw_random/rng_current)
dd if=/dev/hwrng bs=64 count=4 2>/dev/null | wc -c
exec 3<>/dev/hvc0 # once for all: what comes while nobody has it open is lost
stty -echo <&3; echo READY >&3
read -r line <&3; echo "GOT $line" >&3
echo SERIAL; read -r line </dev/ttyS0; echo "SGOT $line"
poweroff -f`, "virtio-rng"), withDevices(func(b *machine.Board) (err error) {
		if err = b.AddEntropy(); err != nil {
			return err
		}
		typed, err = b.AddConsole(hvc)
		return err
	}))
	hvc.waitFor(t, "READY")
	typed([]byte("over virtio\n"))
	hvc.waitFor(t, "GOT over virtio")
	g.console.waitFor(t, "SERIAL")
	g.Board.Serial.Receive([]byte("over serial\n"))
	g.finish(t, machine.PoweredOff)
	g.mustPrint(t, "SGOT over serial")
}
