package bad_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/cellvisor/cellvisor/ident"
	"github.com/cellvisor/cellvisor/payload/bad"
	"github.com/cellvisor/cellvisor/vmm/boot"
	"github.com/cellvisor/cellvisor/vmm/ram"
	"github.com/cellvisor/cellvisor/vmm/vmmtest"
)

const imagePages = 2048

// startImages starts guests that share one image.
func startImages(t *testing.T, n int) (im *ram.Image, hosts []*vmmtest.Host) {
	t.Helper()
	s := vmmtest.RequireKVM(t)
	elf, err := bad.Image(imagePages)
	if err != nil {
		t.Fatal(err)
	}
	file, err := ram.SealImage("cellvisor-test", bytes.NewReader(elf), ident.Bytes(len(elf)))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if im, err = ram.OpenImage(file); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(im.Close)
	for i := range n {
		h := vmmtest.NewHost(t, s, elf, boot.Config{Memory: 48 * ident.MiB, VCPUs: 1, Args: fmt.Sprint(imagePages, " ", i+1)})
		if ok, err := h.RAM.Share(bad.ImageAddr>>ident.PageShift, im, int64(len(elf)-imagePages*ident.PageSize), imagePages); !ok || err != nil {
			t.Fatalf("not shared: %v", err)
		}
		hosts = append(hosts, h)
	}
	for _, h := range hosts {
		h.Go()
	}
	return im, hosts
}

// awaitRounds waits until a guest has come to a round, or has ended.
func awaitRounds(t *testing.T, h *vmmtest.Host, n int) {
	t.Helper()
	for late := time.After(time.Minute); h.Records() < n && !h.Ended(); {
		select {
		case <-h.Changed():
		case <-late:
			t.Fatalf("the guest does not come to round %d: %+v", n, h.Stopped())
		}
	}
}

// TestGuestsShareAnImage: guests that write to one image see their own writes only, and Go code sees the same.
func TestGuestsShareAnImage(t *testing.T) {
	im, hosts := startImages(t, 3)
	was := bytes.Clone(im.Bytes())
	for _, h := range hosts {
		awaitRounds(t, h, 5)
	}
	for i, h := range hosts {
		if r := h.Stopped(); r.Failure != "" || r.Console != "" {
			t.Errorf("guest %d: %s%s", i, r.Console, r.Failure)
		}
		got, want := make([]byte, imagePages*ident.PageSize), was[len(was)-imagePages*ident.PageSize:]
		if _, err := h.RAM.ReadAt(got, bad.ImageAddr); err != nil {
			t.Fatal(err)
		}
		for page := range imagePages {
			mine := page%16 == i+1
			if same := bytes.Equal(got[page<<ident.PageShift:][:ident.PageSize], want[page<<ident.PageShift:][:ident.PageSize]); same == mine {
				t.Fatalf("guest %d, page %d: as the image has it: %t", i, page, same)
			}
		}
	}
	if !bytes.Equal(im.Bytes(), was) {
		t.Error("a guest has written to the image")
	}
}

// TestSettlingUnderARunningGuest: if somebody does what must not be done, the guest goes on with what it had or ends with an error; it never runs on with less.
func TestSettlingUnderARunningGuest(t *testing.T) {
	for range 10 {
		_, hosts := startImages(t, 1)
		h := hosts[0]
		awaitRounds(t, h, 2)
		if _, _, err := h.RAM.Watchable(); err != nil {
			t.Fatal(err)
		}
		awaitRounds(t, h, h.Records()+5)
		r := h.Stopped()
		if r.Console != "" {
			t.Fatalf("the guest finds wrong contents: %s", r.Console)
		}
		t.Logf("after %d rounds: %q", len(r.Records), firstLine(r.Failure))
	}
}

func firstLine(s string) string {
	line, _, _ := bytes.Cut([]byte(s), []byte("\n"))
	return string(line)
}
