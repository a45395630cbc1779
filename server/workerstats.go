package server

// addStats adds up what the workers last said about themselves.
func (s *supervisor) addStats(out map[string]uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.workers {
		if c := w.counters(); c != nil {
			out["pages.remote_reads"] += c.RemoteReads
			out["pages.remote_writes"] += c.RemoteWrites
			out["pages.local_faults"] += c.LocalFaults
			out["pages.in"] += c.PagesIn
			out["pages.out"] += c.PagesOut
			out["pages.resident_bytes"] += uint64(c.ResidentBytes)
			out["checkpoints.made"] += c.Checkpoints
			out["checkpoints.pause_micros_sum"] += uint64(c.CutMicrosSum)
			out["checkpoints.dirty_pages_sum"] += c.DirtyPagesSum
			out["checkpoints.every_micros"] = max(out["checkpoints.every_micros"], uint64(c.EveryMicros))
			out["checkpoints.held_bytes"] += c.HeldBytes
			out["checkpoints.pause_median_micros"] = max(out["checkpoints.pause_median_micros"], uint64(c.CutMedian))
			out["checkpoints.pause_p99_micros"] = max(out["checkpoints.pause_p99_micros"], uint64(c.CutP99))
			out["checkpoints.stop_micros_sum"] += uint64(c.StopMicrosSum)
			out["checkpoints.take_micros_sum"] += uint64(c.TakeMicrosSum)
			out["checkpoints.stop_p99_micros"] = max(out["checkpoints.stop_p99_micros"], uint64(c.StopP99))
			out["checkpoints.take_p99_micros"] = max(out["checkpoints.take_p99_micros"], uint64(c.TakeP99))
			out["checkpoints.pages_on_disk_sum"] += c.PagesOnDisk
			out["checkpoints.pages_left_to_disks"] += c.PagesLeft
			out["checkpoints.share_bytes_sum"] += c.ShareBytesSum
			out["disks.read_bytes"] += c.DiskReadBytes
			out["disks.cached_bytes"] += c.DiskCachedBytes
			addPaging(out, c.Paging)
			out["vcpus.exits"] += c.VCPUExits
			out["vcpus.run_micros"] += uint64(c.RunMicros)
		}
	}
}
