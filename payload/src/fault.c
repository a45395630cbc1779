// fault [N] [MODE] [MEASURERS] [SHARERS]: what does the first touch of a page cost that another vCPU has written?
//
// The last MEASURERS vCPUs each have N pages of their own. In each series vCPU 0 writes all of them; for MODE shared, vCPUs 1 to SHARERS then read them;
// then the measurers touch theirs, each touch timed with RDTSC, all at once. Whoever has nothing to do idles. Series:
//
//   1 local      write to a page that nobody has touched yet, random order: no other vCPU is involved
//   2 read       read, random order            4 write      write, random order
//   3 read-seq   read, sequential              5 write-seq  write, sequential
//   6 shared     write to a page that SHARERS others have read, random order
//
// Output records: for each measurer and series "FLT1" (0x31544c46), series, measurer, sharers, n, then n samples in nanoseconds; at the end "FLTE"
// (0x45544c46).
#include "payload.h"

extern u8 _end[];

enum { LOCAL = 1, READ, READ_SEQ, WRITE, WRITE_SEQ, SHARED, SERIES_END, MAX_CPUS = 256, MAX_N = 8192, LOCAL_N = 256 };

static const char *const names[] = {"", "local", "read", "read-seq", "write", "write-seq", "shared"};

// What a measurer uses while it measures, on pages of its own that it has touched before. The samples lie behind.
static struct bench {
    u64 tsc_khz;
    u32 order[MAX_N];
    u32 ns[MAX_N];
} __attribute__((aligned(4096))) benches[8];

enum { MAX_MEASURERS = sizeof benches / sizeof benches[0] };

static struct barrier met;

static void meet(u64 cpus) { barrier_wait(&met, cpus, 5000); }

// tsc_khz measures the time stamp counter against the VM's clock, from tick to tick. Only the ends look at the clock all the time.
static u64 tsc_khz(void) {
    u32 ms = clock_ms(), from, to;
    while ((from = clock_ms()) == ms) {}
    u64 start = rdtsc();
    idle_us(150000);
    ms = clock_ms();
    while ((to = clock_ms()) == ms) {}
    return (rdtsc() - start) / (to - from);
}

static u64 next_random(u64 *x) {
    *x ^= *x << 13, *x ^= *x >> 7, *x ^= *x << 17;
    return *x;
}

static void shuffle(struct bench *b, u32 n, u64 seed, int sequential) {
    for (u32 i = 0; i < n; i++) b->order[i] = i;
    if (sequential) return;
    u64 x = seed * 0x9e3779b97f4a7c15ull | 1;
    for (u32 i = n - 1; i > 0; i--) {
        u32 j = (u32)(next_random(&x) % (i + 1)), t = b->order[i];
        b->order[i] = b->order[j], b->order[j] = t;
    }
}

// word is the page's word that a series touches: it differs from series to series, so that a stale page shows.
static volatile u64 *word(u64 area, u32 page, u32 series) { return (volatile u64 *)(area + (u64)page * PAGE + series * 64); }

static u64 mark(u64 measurer, u32 page, u32 series) { return measurer << 48 | (u64)series << 32 | (page + 1); }

static void measure(struct bench *b, u64 area, u64 measurer, u32 n, u32 series) {
    shuffle(b, n, measurer * 16 + series, series == READ_SEQ || series == WRITE_SEQ);
    int write = series == LOCAL || series >= WRITE;
    for (u32 i = 0; i < n; i++) b->ns[i] = 0; // touched before the clock runs
    for (u32 i = 0; i < n; i++) {
        u32 page = b->order[i];
        volatile u64 *p = word(area, page, series);
        u64 seen = 0, start = rdtsc();
        if (write) p[1] = start;
        else seen = p[0];
        u64 ticks = rdtsc() - start;
        if (write) seen = p[0];
        u64 want = series == LOCAL ? 0 : mark(measurer, page, series);
        if (seen != want) fail(S("page "), U(page), S(" of measurer "), U(measurer), S(" in series "), S(names[series]), S(" holds "), X(seen), S(", want "), X(want));
        u64 ns = ticks * 1000000 / b->tsc_khz;
        b->ns[i] = ns >> 32 ? 0xffffffff : (u32)ns;
    }
}

struct setup {
    u32 n, measurers, sharers;
    u64 cpus, areas, locals;
};

static u64 area_of(const struct setup *s, u64 m, u32 series) {
    return series == LOCAL ? s->locals + m * LOCAL_N * PAGE : s->areas + m * s->n * PAGE;
}

static u32 pages_of(const struct setup *s, u32 series) { return series == LOCAL && s->n > LOCAL_N ? LOCAL_N : s->n; }

static void emit_series(const struct setup *s, u32 series) {
    for (u32 m = 0; m < s->measurers; m++) {
        u32 n = pages_of(s, series);
        emit(0x31544c46), emit(series), emit(m), emit(series == SHARED ? s->sharers : 0), emit(n);
        for (u32 i = 0; i < n; i++) emit(benches[m].ns[i]);
    }
}

static void run_series(const struct setup *s, u64 cpu, u32 series) {
    u64 first = s->cpus - s->measurers;
    u32 n = pages_of(s, series);
    if (!cpu && series != LOCAL)
        for (u64 m = 0; m < s->measurers; m++)
            for (u32 page = 0; page < n; page++) *word(area_of(s, m, series), page, series) = mark(m, page, series);
    meet(s->cpus);
    if (series == SHARED) {
        // One after the other: their readings are not to compete.
        for (u32 k = 1; k <= s->sharers; k++) {
            if (cpu == k)
                for (u64 m = 0; m < s->measurers; m++)
                    for (u32 page = 0; page < n; page++)
                        if (*word(area_of(s, m, series), page, series) != mark(m, page, series)) fail(S("sharer "), U(k), S(" reads page "), U(page), S(" wrong"));
            meet(s->cpus);
        }
    }
    if (cpu >= first) measure(&benches[cpu - first], area_of(s, cpu - first, series), cpu - first, n, series);
    meet(s->cpus);
    if (!cpu) {
        emit_series(s, series);
        say(S("fault: "), S(names[series]), S(" done, "), U(clock_ms()), S(" ms"));
    }
    meet(s->cpus);
}

void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    struct setup s = {.n = (u32)arg_u64(args, 0, 1000), .measurers = (u32)arg_u64(args, 2, 1), .cpus = cpus};
    if (s.n < 1 || s.n > MAX_N) fail(S("N must be 1 to "), U(MAX_N), S(", is "), U(s.n));
    if (s.measurers < 1 || s.measurers > MAX_MEASURERS || s.measurers + 1 > cpus)
        fail(S("MEASURERS must be 1 to "), U(MAX_MEASURERS), S(" and leave vCPU 0 free of "), U(cpus), S(", is "), U(s.measurers));
    u64 left = cpus - 1 - s.measurers;
    u64 sharers = arg_u64(args, 3, left < 3 ? left : 3);
    if (sharers > left) fail(S("SHARERS "), U(sharers), S(": only "), U(left), S(" vCPUs are left"));
    s.sharers = (u32)sharers;
    s.areas = ((u64)_end + PAGE - 1) & ~(u64)(PAGE - 1);
    s.locals = s.areas + (u64)s.measurers * s.n * PAGE;
    u64 need = s.locals + s.measurers * LOCAL_N * PAGE;
    if (need > ram) fail(S("needs "), U((need >> 20) + 1), S(" MiB of memory, has "), U(ram >> 20));
    if (cpu >= cpus - s.measurers) benches[cpu - (cpus - s.measurers)].tsc_khz = tsc_khz();
    meet(cpus);
    u32 len, ran = 0;
    arg_word(args, 1, &len);
    int all = !len || arg_is(args, 1, "all");
    for (u32 series = LOCAL; series < SERIES_END; series++) {
        if (!all && !arg_is(args, 1, names[series])) continue;
        ran++;
        run_series(&s, cpu, series);
    }
    if (cpu) idle_forever();
    if (!ran) fail(S("no such mode: "), S(args));
    emit(0x45544c46);
    vm_exit(0);
}
