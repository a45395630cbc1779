package tests

import (
	"bufio"
	"os"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cellvisor/cellvisor/payload/bad"
)

// cmdImagePayload writes the payload "image" of package bad into a file: imagepayload FILE PAGES.
func cmdImagePayload(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: imagepayload FILE PAGES")
	}
	pages, err := strconv.Atoi(args[1])
	ts.Check(err)
	file, err := bad.Image(pages)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), file, 0o644))
}

// cmdImageShared checks who has pages of images: imageshared PROCESSES KIB. So many processes of the cluster have mapped one and the same image into their guests'
// memory, none has mapped another one, and all that these guests have takes at most KIB.
func cmdImageShared(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: imageshared PROCESSES KIB")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	most, err := strconv.Atoi(args[1])
	ts.Check(err)
	images, sharing, sum := map[string]bool{}, 0, 0
	for _, p := range processes(ts) {
		image, kib := guestMappings(ts, p.PID)
		if image != "" {
			images[image] = true
			sharing++
			sum += kib
		}
	}
	if len(images) > 1 || sharing != want || sum > most {
		ts.Fatalf("%d processes have %d images, and take %d KiB: want %d processes with one, and at most %d KiB", sharing, len(images), sum, want, most)
	}
}

// guestMappings returns the inode of the image that a process has mapped, "" for none, and what its guest's memory takes, a page that several have divided by them.
func guestMappings(ts *testscript.TestScript, pid int) (image string, kib int) {
	file, err := os.Open("/proc/" + strconv.Itoa(pid) + "/smaps")
	if err != nil {
		return "", 0 // it has ended
	}
	defer file.Close()
	guest := false
	for lines := bufio.NewScanner(file); lines.Scan(); {
		f := strings.Fields(lines.Text())
		switch {
		case len(f) >= 5 && strings.Contains(f[0], "-"): // a mapping: addresses, rights, offset, device, inode, name
			name := ""
			if len(f) > 5 {
				name = f[5]
			}
			isImage := strings.HasPrefix(name, "/memfd:cellvisor-image-") && f[1] == "rw-p"
			guest = isImage || strings.HasPrefix(name, "/memfd:cellvisor-guest")
			if isImage {
				image = f[4]
			}
		case guest && f[0] == "Pss:":
			n, err := strconv.Atoi(f[1])
			ts.Check(err)
			kib += n
		}
	}
	return image, kib
}
