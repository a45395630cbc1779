// A virtio-blk driver for payloads: modern virtio over PCI, one queue, one request at a time, polling. Include it after payload.h.
//
//	struct disk d;
//	if (!disk_open(&d, 0)) fail(S("no disk"));
//	disk_write(&d, sector, buffer, bytes); disk_flush(&d);
//
// Buffers are at their own address (payload memory is mapped one to one), and must lie in the payload's memory. Functions return a status of
// virtio: 0 is success, 1 an I/O error, 2 not supported.
#ifndef CELLVISOR_VIRTIO_BLK_H
#define CELLVISOR_VIRTIO_BLK_H

static inline u32 pci_read32(u32 slot, u32 reg) {
    out32(0xcf8, 0x80000000u | slot << 11 | (reg & ~3u));
    return in32(0xcfc);
}

static inline void pci_write32(u32 slot, u32 reg, u32 v) {
    out32(0xcf8, 0x80000000u | slot << 11 | (reg & ~3u));
    out32(0xcfc, v);
}

static inline u8 pci_read8(u32 slot, u32 reg) { return (u8)(pci_read32(slot, reg) >> (reg & 3) * 8); }

// Single instructions without side effects of their own: a device access must be one that a monitor can carry out.
static inline u32 mmio_read32(u64 a) {
    u32 v;
    __asm__ volatile("movl (%1), %0" : "=r"(v) : "r"(a) : "memory");
    return v;
}
static inline u16 mmio_read16(u64 a) {
    u16 v;
    __asm__ volatile("movw (%1), %0" : "=r"(v) : "r"(a) : "memory");
    return v;
}
static inline u8 mmio_read8(u64 a) {
    u8 v;
    __asm__ volatile("movb (%1), %0" : "=q"(v) : "r"(a) : "memory");
    return v;
}
static inline void mmio_write32(u64 a, u32 v) { __asm__ volatile("movl %0, (%1)" : : "r"(v), "r"(a) : "memory"); }
static inline void mmio_write16(u64 a, u16 v) { __asm__ volatile("movw %0, (%1)" : : "r"(v), "r"(a) : "memory"); }
static inline void mmio_write8(u64 a, u8 v) { __asm__ volatile("movb %0, (%1)" : : "q"(v), "r"(a) : "memory"); }

enum { DISK_QUEUE = 8 };

struct disk_rings {
    struct {
        u64 addr;
        u32 len;
        u16 flags, next;
    } desc[DISK_QUEUE];
    struct {
        u16 flags, idx, ring[DISK_QUEUE];
    } avail;
    struct {
        u32 type, reserved;
        u64 sector;
    } head;
    // What the device writes lies on a page of its own.
    struct {
        volatile u16 flags, idx;
        struct {
            u32 id, len;
        } ring[DISK_QUEUE];
    } used __attribute__((aligned(4096)));
    volatile u8 done_status;
} __attribute__((aligned(4096)));

struct disk {
    struct disk_rings rings;
    u64 common, notify, config;
    u64 sectors; // of 512 bytes
    u16 submitted;
};

enum { DISK_READ = 0, DISK_WRITE = 1, DISK_FLUSH = 4, DISK_OK = 0 };

// disk_find returns the slot of the n-th disk, or 0.
static inline u32 disk_find(u32 n) {
    for (u32 slot = 1; slot < 32; slot++)
        if (pci_read32(slot, 0) == 0x10421af4u && !n--) return slot;
    return 0;
}

// disk_open sets the n-th disk up and returns whether there is one.
static inline int disk_open(struct disk *d, u32 n) {
    u32 slot = disk_find(n);
    if (!slot) return 0;
    u64 bar = pci_read32(slot, 0x10) & ~15u, notify_offset = 0;
    u32 multiplier = 0;
    pci_write32(slot, 0x04, (pci_read32(slot, 0x04) & 0xffff) | 6); // memory space, bus master
    for (u32 cap = pci_read8(slot, 0x34); cap; cap = pci_read8(slot, cap + 1)) {
        if (pci_read8(slot, cap) != 9) continue;
        u64 at = bar + pci_read32(slot, cap + 8);
        switch (pci_read8(slot, cap + 3)) {
        case 1: d->common = at; break;
        case 2: notify_offset = at, multiplier = pci_read32(slot, cap + 16); break;
        case 4: d->config = at; break;
        }
    }
    if (!d->common || !notify_offset || !d->config) fail(S("disk "), U(n), S(" lacks a virtio capability"));
    mmio_write8(d->common + 0x14, 0);
    while (mmio_read8(d->common + 0x14)) pause_cpu();
    mmio_write8(d->common + 0x14, 1 | 2); // acknowledge, driver
    mmio_write32(d->common + 0x08, 0);
    mmio_write32(d->common + 0x0c, 1u << 9); // flush
    mmio_write32(d->common + 0x08, 1);
    mmio_write32(d->common + 0x0c, 1); // version 1
    mmio_write8(d->common + 0x14, 1 | 2 | 8);
    if (!(mmio_read8(d->common + 0x14) & 8)) fail(S("disk "), U(n), S(" refuses the features"));
    mmio_write16(d->common + 0x16, 0);
    mmio_write16(d->common + 0x18, DISK_QUEUE);
    d->rings.avail.flags = 1; // no interrupts
    u64 rings[3] = {(u64)&d->rings.desc, (u64)&d->rings.avail, (u64)&d->rings.used};
    for (u32 i = 0; i < 3; i++) {
        mmio_write32(d->common + 0x20 + 8 * i, (u32)rings[i]);
        mmio_write32(d->common + 0x24 + 8 * i, (u32)(rings[i] >> 32));
    }
    d->notify = notify_offset + (u64)mmio_read16(d->common + 0x1e) * multiplier;
    mmio_write16(d->common + 0x1c, 1);
    mmio_write8(d->common + 0x14, 1 | 2 | 8 | 4); // driver OK
    d->sectors = (u64)mmio_read32(d->config + 4) << 32 | mmio_read32(d->config);
    return 1;
}

// disk_do carries out one request and waits for its end.
static inline u8 disk_do(struct disk *d, u32 type, u64 sector, void *buffer, u32 bytes) {
    struct disk_rings *r = &d->rings;
    enum { NEXT = 1, DEVICE_WRITES = 2 };
    r->head.type = type, r->head.sector = sector;
    r->done_status = 0xff;
    u32 n = 0;
    r->desc[n].addr = (u64)&r->head, r->desc[n].len = 16, r->desc[n].flags = NEXT, r->desc[n].next = 1;
    if (bytes) {
        n = 1;
        r->desc[n].addr = (u64)buffer, r->desc[n].len = bytes, r->desc[n].next = 2;
        r->desc[n].flags = NEXT | (type == DISK_READ ? DEVICE_WRITES : 0);
    }
    n++;
    r->desc[n].addr = (u64)&r->done_status, r->desc[n].len = 1, r->desc[n].flags = DEVICE_WRITES;
    r->avail.ring[d->submitted % DISK_QUEUE] = 0;
    __atomic_store_n(&r->avail.idx, ++d->submitted, __ATOMIC_SEQ_CST);
    mmio_write16(d->notify, 0);
    u32 us = 20;
    for (u32 spins = 0; __atomic_load_n(&r->used.idx, __ATOMIC_ACQUIRE) != d->submitted;) {
        if (spins < 64) {
            spins++;
            pause_cpu();
            continue;
        }
        idle_us(us);
        us = us < 400 ? us * 2 : 500;
    }
    return r->done_status;
}

static inline u8 disk_read(struct disk *d, u64 sector, void *to, u32 bytes) { return disk_do(d, DISK_READ, sector, to, bytes); }
static inline u8 disk_write(struct disk *d, u64 sector, void *from, u32 bytes) { return disk_do(d, DISK_WRITE, sector, from, bytes); }
static inline u8 disk_flush(struct disk *d) { return disk_do(d, DISK_FLUSH, 0, 0, 0); }

#endif
