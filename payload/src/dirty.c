// dirty [PERCENT] [RATE_PER_S] [SECONDS]: writes PERCENT of memory over and over, at RATE_PER_S pages a second in all, for SECONDS, and says how far it is
// each second. RATE_PER_S = 0 is as fast as it goes, SECONDS = 0 for ever. At the end every page must hold what was written last.
#include "payload.h"

extern u8 _end[];

enum { MAX_CPUS = 1024 };

static struct progress {
    u64 writes;
} __attribute__((aligned(4096))) done[MAX_CPUS];

static struct barrier finished;

static u64 gcd(u64 a, u64 b) { return b ? gcd(b, a % b) : a; }

// A vCPU's share: n pages from start, visited in strides so that neighbours are far apart in time. Write number w goes to place w*step mod n and
// stores w+1, so what each page must hold in the end is known without a book.
struct share {
    u64 start, n, step, at;
};

static void write_next(struct share *s, u64 w) {
    *(volatile u64 *)(s->start + s->at * PAGE) = w + 1;
    s->at = (s->at + s->step) % s->n;
}

static void check(const struct share *s, u64 writes, u64 cpu) {
    u64 at = 0, rounds = writes / s->n, rest = writes % s->n;
    for (u64 k = 0; k < s->n; k++, at = (at + s->step) % s->n) {
        u64 want = k < rest ? rounds * s->n + k + 1 : rounds ? (rounds - 1) * s->n + k + 1 : 0;
        u64 v = *(volatile u64 *)(s->start + at * PAGE);
        if (v != want) fail(S("vCPU "), U(cpu), S(": page at "), X(s->start + at * PAGE), S(" holds "), U(v), S(", want "), U(want));
    }
}

// due is how many writes this vCPU should have made by now.
static u64 due(u64 ms, u64 rate, u64 cpu, u64 cpus) { return ms * rate / 1000 / cpus + (ms * rate / 1000 % cpus > cpu); }

static void report(u64 ms, u64 cpus) {
    u64 sum = 0;
    for (u64 c = 0; c < cpus; c++) sum += __atomic_load_n(&done[c].writes, __ATOMIC_RELAXED);
    say(S("dirty: "), U(ms / 1000), S(" s, "), U(sum), S(" pages written"));
}

void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    u64 start = ((u64)_end + PAGE - 1) & ~(u64)(PAGE - 1), all = (ram - start) / PAGE;
    u64 percent = arg_u64(args, 0, 10), rate = arg_u64(args, 1, 1000), seconds = arg_u64(args, 2, 10);
    if (cpus > MAX_CPUS) fail(S("too many vCPUs: "), U(cpus));
    if (!percent || percent > 100) fail(S("PERCENT must be 1 to 100, is "), U(percent));
    u64 pages = all * percent / 100;
    if (pages < cpus) pages = cpus;
    struct share s = {start + pages * cpu / cpus * PAGE, pages * (cpu + 1) / cpus - pages * cpu / cpus, 0, 0};
    for (s.step = s.n * 5 / 8 + 1; gcd(s.step, s.n) != 1;) s.step++;
    if (!cpu) say(S("dirty: "), U(pages), S(" of "), U(all), S(" pages, "), U(rate), S(" a second, "), U(cpus), S(" vCPUs"));
    u32 begin = clock_ms();
    u64 writes = 0, ms, said = 0;
    while (!seconds || (ms = clock_ms() - begin) < seconds * 1000) {
        if (!seconds) ms = clock_ms() - begin;
        u64 target = rate ? due(ms, rate, cpu, cpus) : writes + 1024;
        while (writes < target) write_next(&s, writes++);
        __atomic_store_n(&done[cpu].writes, writes, __ATOMIC_RELAXED);
        if (!cpu && ms / 1000 > said) report(ms, cpus), said = ms / 1000;
        if (rate) idle_us(2000);
    }
    check(&s, writes, cpu);
    barrier_wait(&finished, cpus, 2000);
    if (cpu) idle_forever();
    report(seconds * 1000, cpus);
    vm_exit(0);
}
