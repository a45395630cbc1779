// journal [N] [RATE_HZ] [BLOCKS] [append|verify]: vCPU 0 keeps a journal on the first disk; the others idle.
//
// Record number s is a block of 4 KiB with s, a pattern that depends on it, and a checksum, at block s modulo BLOCKS. It is written, the disk is
// flushed, then s is emitted: so a number that was seen outside is on the disk. At the start everything on the disk is read and verified, and
// the journal goes on behind the last record; while it runs, blocks are read again in turn: each must hold exactly what was written
// last, and one that was not written yet nothing newer. Whatever is wrong ends the VM with status 1.
//
// N records (0: for ever, default 100) at RATE_HZ a second (0: as fast as it goes, default 100), in BLOCKS blocks (0: the whole disk, the
// default). verify: only read and verify, print how many records there are, and end.
#include "payload.h"
#include "virtio_blk.h"

enum { WORDS = PAGE / 8, MAGIC = 0x4c4e524a, BATCH = 16 };

struct record {
    u32 magic, reserved;
    u64 number;
    u64 words[WORDS - 3];
    u64 sum;
};

static struct disk disk;
static struct record buffer[BATCH] __attribute__((aligned(4096)));
static u64 blocks;

static u64 sum_of(const struct record *r) {
    const u64 *w = (const u64 *)r;
    u64 sum = 0xcbf29ce484222325u;
    for (u32 i = 0; i < WORDS - 1; i++) sum = (sum ^ w[i]) * 0x100000001b3u, sum ^= sum >> 29;
    return sum;
}

static u64 word_of(u64 number, u32 i) { return (number * 0x9e3779b97f4a7c15u + i) * 0xbf58476d1ce4e5b9u; }

static void fill(struct record *r, u64 number) {
    r->magic = MAGIC, r->reserved = 0, r->number = number;
    for (u32 i = 0; i < WORDS - 3; i++) r->words[i] = word_of(number, i);
    r->sum = sum_of(r);
}

static int is_empty(const struct record *r) {
    const u64 *w = (const u64 *)r;
    u64 any = 0;
    for (u32 i = 0; i < WORDS; i++) any |= w[i];
    return !any;
}

// check fails unless the block holds a whole record of its own.
static void check(const struct record *r, u64 block) {
    if (r->magic != MAGIC || r->sum != sum_of(r)) fail(S("block "), U(block), S(" is damaged: magic "), X(r->magic), S(", number "), U(r->number));
    if (r->number % blocks != block) fail(S("block "), U(block), S(" holds record "), U(r->number));
    for (u32 i = 0; i < WORDS - 3; i++)
        if (r->words[i] != word_of(r->number, i)) fail(S("block "), U(block), S(", record "), U(r->number), S(": word "), U(i), S(" is "), X(r->words[i]));
}

static void must(u8 status, const char *what, u64 block) {
    if (status != DISK_OK) fail(S(what), S(" of block "), U(block), S(": status "), U(status));
}

// expect reads a block and verifies that it holds what it must when records 0 to next-1 have been written.
static void expect(u64 block, u64 next) {
    must(disk_read(&disk, block * (PAGE / 512), buffer, PAGE), "read", block);
    if (block >= next) {
        if (!is_empty(buffer)) fail(S("block "), U(block), S(" holds record "), U(buffer->number), S(", only "), U(next), S(" were written"));
        return;
    }
    u64 want = block + (next - 1 - block) / blocks * blocks;
    check(buffer, block);
    if (buffer->number != want) fail(S("block "), U(block), S(" holds record "), U(buffer->number), S(", record "), U(want), S(" was written there"));
}

// scan reads everything and returns the number that follows the last record. The record that was being written when the disk was left may be there
// or not; all before it must.
static u64 scan(void) {
    u64 next = 0;
    for (u64 block = 0; block < blocks; block += BATCH) {
        u64 n = blocks - block < BATCH ? blocks - block : BATCH;
        must(disk_read(&disk, block * (PAGE / 512), buffer, (u32)(n * PAGE)), "read", block);
        for (u64 i = 0; i < n; i++) {
            if (is_empty(&buffer[i])) continue;
            check(&buffer[i], block + i);
            if (buffer[i].number >= next) next = buffer[i].number + 1;
        }
    }
    for (u64 block = 0; block < blocks; block++) expect(block, next);
    return next;
}

void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    (void)cpus, (void)ram;
    if (cpu) idle_forever();
    u64 n = arg_u64(args, 0, 100), rate = arg_u64(args, 1, 100), most = arg_u64(args, 2, 0);
    if (!disk_open(&disk, 0)) fail(S("there is no disk: run with --disk"));
    blocks = disk.sectors / (PAGE / 512);
    if (most && most < blocks) blocks = most;
    if (!blocks) fail(S("the disk has only "), U(disk.sectors), S(" sectors"));
    u64 first = scan();
    say(S("journal: "), U(first), S(" records verified in "), U(blocks), S(" blocks"));
    if (arg_is(args, 3, "verify")) vm_exit(0);
    u32 start = clock_ms();
    u64 again = 0;
    for (u64 i = 0; !n || i < n; i++) {
        if (rate) {
            u64 due_us = i * 1000000 / rate, now_us;
            while ((now_us = (u64)(clock_ms() - start) * 1000) < due_us) {
                u64 wait_us = due_us - now_us;
                idle_us(wait_us < 1000000 ? (u32)wait_us : 1000000);
            }
        }
        u64 number = first + i;
        expect(number % blocks, number);
        fill(buffer, number);
        must(disk_write(&disk, number % blocks * (PAGE / 512), buffer, PAGE), "write", number % blocks);
        must(disk_flush(&disk), "flush", number % blocks);
        emit((u32)number);
        expect(again, number + 1);
        again = (again + 1) % blocks;
    }
    scan();
    say(S("journal: done"));
    vm_exit(0);
}
