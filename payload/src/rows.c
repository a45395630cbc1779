// rows [MIB] [HOT_PERCENT] [WAIT_S] [SECONDS] [commit|-] [SLICES]: a table of rows of one page each, as a database keeps it. It is filled, then read and changed: a transaction
// reads READS rows, checks all of each, and writes one again. A committed one also writes a record to a log on the first disk, and flushes
// that. Rows are drawn from the first HOT_PERCENT of the table, but for some in ten thousand, which are drawn from all of it: 0, 1, 10 and 100 in turn,
// for SECONDS each, without commits and, if they are wanted, with them. Emits, for each, the transactions a second, the median of WINDOWS equal spans.
// Before the first it idles for WAIT_S, so that memory can move. With SLICES it emits a 0 when it has idled, and then the rate of each of so many equal spans rather
// than a median: whoever sets two beside each other pauses one while the other has its turn. Exit 0, or 1 if a row was wrong. One vCPU works.
#include "payload.h"
#include "virtio_blk.h"

extern u8 _end[];

enum { WORDS = PAGE / 8, READS = 16, WINDOWS = 5 };

static const u32 cold[] = {0, 1, 10, 100};

typedef volatile u64 row[WORDS]; // its number, its version, and words that follow from both

static struct disk disk;
static u64 record[64] __attribute__((aligned(512)));
static u64 logged; // records

static u64 seed = 1;

static inline u64 draw(void) {
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return seed >> 33;
}

static inline u64 word_of(u64 number, u64 version, u32 i) { return (number * 0x9e3779b97f4a7c15ull + version) ^ ((u64)i * 0xbf58476d1ce4e5b9ull); }

static void write_row(row *r, u64 number, u64 version) {
    (*r)[0] = number;
    (*r)[1] = version;
    for (u32 i = 2; i < WORDS; i++) (*r)[i] = word_of(number, version, i);
}

static u64 read_row(row *r, u64 number) {
    u64 version = (*r)[1];
    if ((*r)[0] != number) fail(S("row "), U(number), S(" says that it is "), U((*r)[0]));
    for (u32 i = 2; i < WORDS; i++)
        if ((*r)[i] != word_of(number, version, i)) fail(S("row "), U(number), S(" is wrong at word "), U(i));
    return version;
}

static void commit(u64 number, u64 version) {
    record[0] = logged, record[1] = number, record[2] = version;
    if (disk_write(&disk, logged++ % disk.sectors, record, sizeof record) != DISK_OK || disk_flush(&disk) != DISK_OK) fail(S("the log cannot be written"));
}

static void transact(row *table, u64 rows, u64 hot, u32 share, int commits) {
    for (u32 n = 0; n < READS; n++) {
        u64 i = draw() % (draw() % 10000 < share ? rows : hot), version = read_row(&table[i], i);
        if (n < READS - 1) continue;
        write_row(&table[i], i, version + 1);
        if (commits) commit(i, version + 1);
    }
}

static u32 rate(row *table, u64 rows, u64 hot, u32 share, int commits, u32 ms) {
    u32 begun = clock_ms(), now;
    u64 done = 0;
    do { // some at least, even if the host lets it run too late for any
        for (u32 n = 0; n < (commits ? 1 : 100); n++, done++) transact(table, rows, hot, share, commits);
    } while ((now = clock_ms()) - begun < ms || now == begun);
    return (u32)(done * 1000 / (now - begun));
}

static u32 measure(row *table, u64 rows, u64 hot, u32 share, int commits, u32 ms) {
    u32 rates[WINDOWS];
    for (u32 n = 0; n < WINDOWS; n++) {
        u32 r = rate(table, rows, hot, share, commits, ms / WINDOWS), at = n;
        for (; at && rates[at - 1] > r; at--) rates[at] = rates[at - 1];
        rates[at] = r;
    }
    return rates[WINDOWS / 2];
}

void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    (void)cpus;
    if (cpu) idle_forever();
    row *table = (row *)(((u64)_end + PAGE - 1) & ~(u64)(PAGE - 1));
    u64 most = (ram - (u64)table) / PAGE, rows = arg_u64(args, 0, 0) << 8;
    if (!rows || rows > most) rows = most;
    u64 hot = rows * arg_u64(args, 1, 10) / 100, wait = arg_u64(args, 2, 0);
    u32 ms = (u32)arg_u64(args, 3, 1) * 1000, slices = (u32)arg_u64(args, 5, 0);
    if (!hot) hot = 1;
    for (u64 n = 0; n < rows; n++) write_row(&table[n], n, 0);
    int commits = arg_is(args, 4, "commit");
    if (commits && !disk_open(&disk, 0)) fail(S("there is no disk for the log: run with --disk"));
    say(S("rows: "), U(rows), S(" rows, "), U(hot), S(" of them hot"));
    for (u64 n = 0; n < wait; n++) idle_us(1000000);
    if (slices) emit(0);
    for (u32 i = 0; i < sizeof cold / sizeof *cold; i++)
        for (int with = 0; with <= commits; with++) {
            rate(table, rows, hot, cold[i], with, ms / WINDOWS); // what is hot comes near
            for (u32 n = 0; n < slices; n++) emit(rate(table, rows, hot, cold[i], with, ms / slices));
            if (slices) continue;
            u32 n = measure(table, rows, hot, cold[i], with, ms);
            say(S("rows: "), U(cold[i]), S(" in 10000 cold: "), U(n), S(" transactions a second"), S(with ? ", committed" : ""));
            emit(n);
        }
    vm_exit(0);
}
