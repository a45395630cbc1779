package worker

import "os"

// stream is one kind of output: a file of what has left, and behind it what is held back.
type stream struct {
	file    *os.File
	written int64  // bytes in the file
	held    []byte // the bytes after those
}

func openStream(fs *files, name string) (stream, error) {
	f, err := fs.open(name, os.O_CREATE|os.O_RDWR)
	if err != nil {
		return stream{}, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return stream{}, err
	}
	return stream{file: f, written: info.Size()}, nil
}

// put adds output, which leaves at once unless hold.
func (s *stream) put(b []byte, hold bool) error {
	if hold {
		s.held = append(s.held, b...)
		return nil
	}
	n, err := s.file.WriteAt(b, s.written)
	s.written += int64(n)
	return err
}

// release lets output up to the given offset of the whole leave.
func (s *stream) release(upTo int64) error {
	n := min(upTo-s.written, int64(len(s.held)))
	if n <= 0 {
		return nil
	}
	if err := s.put(s.held[:n], false); err != nil {
		return err
	}
	s.held = append(s.held[:0], s.held[n:]...)
	return nil
}

func (s *stream) end() int64 { return s.written + int64(len(s.held)) }
