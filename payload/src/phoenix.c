// phoenix [CRASHES] [BLOCKS] [crash|read]: a guest that crashes itself and checks after every boot that no byte of its disk is read wrong.
//
// The first disk holds a head (block 0), a table of versions (block 1) and BLOCKS blocks of 4 KiB, whose contents follow from their number and
// version. At each boot the guest checks that its memory is zero, reads the head and the table, reads every block into a page of its own and
// verifies it, reads some a second time elsewhere, and emits the number of crashes so far. Then it
//
//   scribbles on pages that hold blocks, without writing them,
//   writes new versions of blocks from the pages that hold them, and scribbles on some of those afterwards,
//   writes new versions of blocks from other pages, so that the page that held one is out of date,
//   scribbles, with all other vCPUs, on pages that were just read,
//
// and crashes, on another vCPU and in another way each time. After CRASHES crashes (default 100) it ends with status 0; whatever is wrong ends it
// with status 1. BLOCKS: default 64.
//
// read: only read and verify all blocks, emit 1, and idle for ever: how long does a boot take to its first output?
#include "payload.h"
#include "virtio_blk.h"

enum { WORDS = PAGE / 8, MAGIC = 0x58494e50, FIRST = 2, MOST_CRASH = PAGE / 4, BATCH = 32, SECTORS = PAGE / 512 };

extern u8 _end[];

struct head {
    u32 magic, crashes;
    u64 blocks, seed;
    u8 rest[PAGE - 24];
};

static struct disk disk;
static struct head head __attribute__((aligned(4096)));
static u32 versions[PAGE / 4] __attribute__((aligned(4096)));
static u64 spare[4][WORDS] __attribute__((aligned(4096)));
static struct flag go, done;
static u64 pages; // where blocks are read to: block b at page b
static u64 blocks, alive;
static volatile u32 crasher;

static u64 *page_of(u64 block) { return (u64 *)(pages + block * PAGE); }

static u64 word_of(u64 block, u32 version, u32 i) {
    u64 x = (block + 1) * 0x9e3779b97f4a7c15u + version * 0xbf58476d1ce4e5b9u + i;
    return (x ^ x >> 29) * 0x94d049bb133111ebu;
}

static void fill(u64 *page, u64 block, u32 version) {
    for (u32 i = 0; i < WORDS; i++) page[i] = word_of(block, version, i);
}

static void verify(const u64 *page, u64 block, u32 version, const char *where) {
    for (u32 i = 0; i < WORDS; i++)
        if (page[i] != word_of(block, version, i))
            fail(S(where), S(": block "), U(block), S(", version "), U(version), S(": word "), U(i), S(" is "), X(page[i]), S(", want "), X(word_of(block, version, i)));
}

static void must(u8 status, const char *what, u64 block) {
    if (status != DISK_OK) fail(S(what), S(" of block "), U(block), S(": status "), U(status));
}

static void read_at(u64 block, void *to, u32 n) { must(disk_read(&disk, block * SECTORS, to, n * PAGE), "read", block); }
static void write_at(u64 block, void *from, u32 n) { must(disk_write(&disk, block * SECTORS, from, n * PAGE), "write", block); }

static u64 next_random(void) {
    u64 *x = &head.seed;
    *x ^= *x << 13, *x ^= *x >> 7, *x ^= *x << 17;
    return *x;
}

// format writes version 0 of everything.
static void format(u64 n) {
    for (u64 block = 0; block < n; block += BATCH) {
        u32 many = n - block < BATCH ? (u32)(n - block) : BATCH;
        for (u32 i = 0; i < many; i++) fill(page_of(block + i), block + i, 0);
        write_at(FIRST + block, page_of(block), many);
    }
    for (u32 i = 0; i < MOST_CRASH; i++) versions[i] = 0;
    write_at(1, versions, 1);
    head.magic = MAGIC, head.crashes = 0, head.blocks = n, head.seed = 0x2545f4914f6cdd1du;
    write_at(0, &head, 1);
}

static u32 version_of(u64 block) { return block < MOST_CRASH ? versions[block] : 0; }

// read_all reads and verifies every block.
static void read_all(void) {
    for (u64 block = 0; block < blocks; block += BATCH) {
        u32 many = blocks - block < BATCH ? (u32)(blocks - block) : BATCH;
        read_at(FIRST + block, page_of(block), many);
        for (u32 i = 0; i < many; i++) verify(page_of(block + i), block + i, version_of(block + i), "after the boot");
    }
}

static void must_be_zero(const u64 *p, u64 bytes, const char *what) {
    for (u64 i = 0; i < bytes / 8; i++)
        if (p[i]) fail(S(what), S(" is not zero at the boot: "), X((u64)(p + i)), S(" holds "), X(p[i]));
}

// work changes blocks and pages before the next crash.
static void work(void) {
    for (u64 n = 0; n < blocks / 2 + 1; n++) {
        u64 r = next_random(), block = r % blocks, *page = page_of(block), *other = spare[r >> 32 & 3];
        switch (r >> 40 & 7) {
        case 0: // a page that holds a block is written, the block is not
            page[r >> 48 & (WORDS - 1)] ^= r;
            break;
        case 1: case 2: // a new version, from the page that holds it
            fill(page, block, ++versions[block]);
            write_at(FIRST + block, page, 1);
            break;
        case 3: // the same, and the page is written on
            fill(page, block, ++versions[block]);
            write_at(FIRST + block, page, 1);
            page[r >> 48 & (WORDS - 1)]++;
            break;
        case 4: // a new version from elsewhere
            fill(other, block, ++versions[block]);
            write_at(FIRST + block, other, 1);
            if (r >> 60 & 1) other[7] = r;
            break;
        case 5: // part of a block
            fill(other, block, ++versions[block]);
            must(disk_write(&disk, (FIRST + block) * SECTORS, other, PAGE / 2), "write of half", block);
            must(disk_write(&disk, (FIRST + block) * SECTORS + SECTORS / 2, (u8 *)other + PAGE / 2, PAGE / 2), "write of half", block);
            break;
        default: // read again, to where another block was
            read_at(FIRST + block, other, 1);
            verify(other, block, versions[block], "while it ran");
            if (r >> 61 & 1) other[r >> 48 & (WORDS - 1)] = 0;
        }
    }
    write_at(1, versions, 1);
    head.crashes++;
    write_at(0, &head, 1);
}

static void crash(u32 how) {
    if (how % 3 == 0) __asm__ volatile("ud2");
    if (how % 3 == 1) ((void (*)(void))0x7000deadb000)();
    out32(0x1234, 1); // no such port
    for (;;) idle_us(1000000);
}

// scribble writes into the pages of this vCPU's share, in all of them at once with the others, until the crash takes it.
static void scribble(u64 cpu, u64 cpus) {
    for (u64 block = cpu; block < blocks; block += cpus) page_of(block)[block % WORDS] += cpu + 1;
}

void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    if (cpu) {
        wait_at_least(&go.value, 1, 1000);
        scribble(cpu, cpus);
        add(&done.value, 1);
        if (load(&crasher) == cpu) {
            wait_at_least(&done.value, (u32)cpus, 100);
            crash(head.crashes);
        }
        idle_forever();
    }
    if (alive++) fail(S("memory of the boot before is still here"));
    int reads = arg_is(args, 2, "read");
    u64 crashes = arg_u64(args, 0, 100), n = arg_u64(args, 1, 64);
    pages = ((u64)_end + PAGE - 1) & ~(u64)(PAGE - 1);
    if (!n || pages + n * PAGE > ram) fail(S("BLOCKS must be 1 to "), U((ram - pages) / PAGE), S(", is "), U(n));
    if (!reads && n > MOST_CRASH) fail(S("BLOCKS must be at most "), U(MOST_CRASH), S(", is "), U(n));
    if (!reads) must_be_zero((const u64 *)pages, n * PAGE, "a page");
    must_be_zero(&spare[0][0], sizeof spare, "a spare page");
    if (!disk_open(&disk, 0)) fail(S("there is no disk: run with --disk"));
    if (disk.sectors < (n + FIRST) * SECTORS) fail(S("the disk has "), U(disk.sectors), S(" sectors, "), U((n + FIRST) * SECTORS), S(" are needed"));
    read_at(0, &head, 1);
    if (head.magic != MAGIC || head.blocks != n) {
        format(n);
        for (u64 i = 0; i < n * WORDS; i++) ((u64 *)pages)[i] = 0;
    }
    read_at(1, versions, 1);
    blocks = n;
    read_all();
    if (reads) {
        emit(1);
        say(S("read "), U(blocks), S(" blocks"));
        idle_forever();
    }
    emit(head.crashes);
    if (head.crashes >= crashes) {
        say(S("phoenix: "), U(head.crashes), S(" crashes, no wrong byte"));
        vm_exit(0);
    }
    work();
    store(&crasher, (u32)(head.crashes % cpus));
    store(&go.value, 1);
    scribble(0, cpus);
    add(&done.value, 1);
    if (!crasher) {
        wait_at_least(&done.value, (u32)cpus, 100);
        crash(head.crashes);
    }
    idle_forever();
}
