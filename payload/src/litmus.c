// litmus [ROUNDS] [TEST]: memory-order tests between vCPUs, ROUNDS instances of each test. Counts every outcome, and fails on one that x86-TSO
// forbids (Owens, Sarkar, Sewell: A better x86 memory model: x86-TSO, 2009). Store buffering's relaxed outcome is allowed, and expected.
//
// As in litmus7, a test is not synchronised instance by instance: each vCPU sweeps over an array of up to 4096 instances between two barriers, so
// that a million rounds are feasible where a page takes 100 us to come. From sweep to sweep vary
//   - the distance of neighbours: 8 to 1024 bytes, so 512 to 4 instances share a page;
//   - where x and y of one instance lie: apart in the same order, apart in opposite orders, side by side;
//   - the order of the vCPUs' ways through the array: in step, page by page, towards each other, far apart;
//   - which vCPU plays which thread.
// Variables are not set back: sweep s writes base+1 and base+2 with a base that grows, and what is below base counts as 0, the initial value.
#include "payload.h"

enum { SWEEP = 4096, REGION = 1 << 20, THREADS = 4, OUTCOMES = 81, MAX_CPUS = 256 };

static u8 vars[2 * REGION] __attribute__((aligned(4096)));

struct result {
    u32 a, b;
};
static struct result results[THREADS][SWEEP] __attribute__((aligned(4096)));

// Each vCPU checks a part of the instances and counts on a page of its own.
static struct tally {
    u32 count[OUTCOMES];
} __attribute__((aligned(4096))) tallies[MAX_CPUS];

static struct barrier ready, swept, checked;

typedef volatile u32 var;
typedef void code(var *x, var *y, u32 one, u32 two, struct result *r);

// --- the threads' programs ---------------------------------------------------------------------------------------------------

static void wx1_ry(var *x, var *y, u32 one, u32 two, struct result *r) { (void)two, *x = one, r->a = *y; }
static void wy1_rx(var *x, var *y, u32 one, u32 two, struct result *r) { (void)two, *y = one, r->a = *x; }
static void wx1_f_ry(var *x, var *y, u32 one, u32 two, struct result *r) {
    (void)two, *x = one;
    __asm__ volatile("mfence" : : : "memory");
    r->a = *y;
}
static void wy1_f_rx(var *x, var *y, u32 one, u32 two, struct result *r) {
    (void)two, *y = one;
    __asm__ volatile("mfence" : : : "memory");
    r->a = *x;
}
static void xx1_ry(var *x, var *y, u32 one, u32 two, struct result *r) { (void)two, __atomic_exchange_n(x, one, __ATOMIC_SEQ_CST), r->a = *y; }
static void xy1_rx(var *x, var *y, u32 one, u32 two, struct result *r) { (void)two, __atomic_exchange_n(y, one, __ATOMIC_SEQ_CST), r->a = *x; }
static void wx1_wy1(var *x, var *y, u32 one, u32 two, struct result *r) { (void)two, (void)r, *x = one, *y = one; }
static void wy1_wx1(var *x, var *y, u32 one, u32 two, struct result *r) { (void)two, (void)r, *y = one, *x = one; }
static void ry_rx(var *x, var *y, u32 one, u32 two, struct result *r) { (void)one, (void)two, r->a = *y, r->b = *x; }
static void rx_ry(var *x, var *y, u32 one, u32 two, struct result *r) { (void)one, (void)two, r->a = *x, r->b = *y; }
static void rx_wy1(var *x, var *y, u32 one, u32 two, struct result *r) { (void)two, r->a = *x, *y = one; }
static void ry_wx1(var *x, var *y, u32 one, u32 two, struct result *r) { (void)two, r->a = *y, *x = one; }
static void wx1_wy2(var *x, var *y, u32 one, u32 two, struct result *r) { (void)r, *x = one, *y = two; }
static void wy1_wx2(var *x, var *y, u32 one, u32 two, struct result *r) { (void)r, *y = one, *x = two; }
static void wx2_wy1(var *x, var *y, u32 one, u32 two, struct result *r) { (void)r, *x = two, *y = one; }
static void wx1_wx2(var *x, var *y, u32 one, u32 two, struct result *r) { (void)y, (void)r, *x = one, *x = two; }
static void rx_rx(var *x, var *y, u32 one, u32 two, struct result *r) { (void)y, (void)one, (void)two, r->a = *x, r->b = *x; }
static void rx_wx1(var *x, var *y, u32 one, u32 two, struct result *r) { (void)y, (void)two, r->a = *x, *x = one; }
static void wx1_rx(var *x, var *y, u32 one, u32 two, struct result *r) { (void)y, (void)two, *x = one, r->a = *x; }
static void wx1(var *x, var *y, u32 one, u32 two, struct result *r) { (void)y, (void)two, (void)r, *x = one; }
static void wx2(var *x, var *y, u32 one, u32 two, struct result *r) { (void)y, (void)one, (void)r, *x = two; }
static void wy1(var *x, var *y, u32 one, u32 two, struct result *r) { (void)x, (void)two, (void)r, *y = one; }

// --- the tests -----------------------------------------------------------------------------------------------------------------

// An outcome is up to four values of 0 to 2, each one of a thread's reads or a variable's final value.
enum { NONE, R0A, R0B, R1A, R1B, R2A, R2B, R3A, R3B, FX, FY };

struct test {
    const char *name;
    u32 threads;
    code *run[THREADS];
    u8 watch[4];
    const char *label[4];
    int (*forbidden)(const u32 *v);
    const char *why;
};

static int never(const u32 *v) { return (void)v, 0; }
static int both_zero(const u32 *v) { return v[0] == 0 && v[1] == 0; }
static int both_one(const u32 *v) { return v[0] == 1 && v[1] == 1; }
static int one_zero(const u32 *v) { return v[0] == 1 && v[1] == 0; }
static int one_two(const u32 *v) { return v[0] == 1 && v[1] == 2; }
static int backwards(const u32 *v) { return v[0] > v[1]; }
static int not_two(const u32 *v) { return v[0] != 2; }
static int corw(const u32 *v) { return v[0] == 1 || (v[0] == 2 && v[1] == 2) || v[1] == 0; }
static int cowr(const u32 *v) { return v[0] == 0 || (v[0] == 2 && v[1] == 1) || v[1] == 0; }
static int wrc(const u32 *v) { return v[0] == 1 && v[1] == 1 && v[2] == 0; }
static int iriw(const u32 *v) { return v[0] == 1 && v[1] == 0 && v[2] == 1 && v[3] == 0; }

static const struct test tests[] = {
    {"sb", 2, {wx1_ry, wy1_rx}, {R0A, R1A}, {"r0=", "r1="}, never, "store buffering"},
    {"sbf", 2, {wx1_f_ry, wy1_f_rx}, {R0A, R1A}, {"r0=", "r1="}, both_zero, "a fenced store was passed by a load"},
    {"sbx", 2, {xx1_ry, xy1_rx}, {R0A, R1A}, {"r0=", "r1="}, both_zero, "a locked exchange was passed by a load"},
    {"mp", 2, {wx1_wy1, ry_rx}, {R1A, R1B}, {"flag=", "data="}, one_zero, "the flag was seen before the data"},
    {"lb", 2, {rx_wy1, ry_wx1}, {R0A, R1A}, {"r0=", "r1="}, both_one, "loads saw stores that come after them"},
    {"22w", 2, {wx1_wy2, wy1_wx2}, {FX, FY}, {"x=", "y="}, both_one, "stores were reordered"},
    {"s", 2, {wx2_wy1, ry_wx1}, {R1A, FX}, {"r1=", "x="}, one_two, "a store passed a load before it"},
    {"coww", 2, {wx1_wx2, rx_rx}, {FX}, {"x="}, not_two, "the later of two stores was lost"},
    {"corr", 2, {wx1_wx2, rx_rx}, {R1A, R1B}, {"first=", "second="}, backwards, "a variable went back in time"},
    {"corw", 2, {rx_wx1, wx2}, {R0A, FX}, {"r0=", "x="}, corw, "a load and the store after it disagree on the order"},
    {"cowr", 2, {wx1_rx, wx2}, {R0A, FX}, {"r0=", "x="}, cowr, "a store and the load after it disagree on the order"},
    {"wrc", 3, {wx1, rx_wy1, ry_rx}, {R1A, R2A, R2B}, {"r1=", "r2=", "r3="}, wrc, "causality was broken"},
    {"iriw", 4, {wx1, wy1, rx_ry, ry_rx}, {R2A, R2B, R3A, R3B}, {"r0=", "r1=", "r2=", "r3="}, iriw, "two readers saw two writers in different orders"},
    // Message passing with the writer's stores swapped: it must fail, and so shows that a failure is seen. Run by name only.
    {"canary", 2, {wy1_wx1, ry_rx}, {R1A, R1B}, {"flag=", "data="}, one_zero, "as planted"},
};
enum { TESTS = sizeof tests / sizeof tests[0] };

// --- a sweep -------------------------------------------------------------------------------------------------------------------

struct plan {
    u32 n;      // instances, a power of two
    u32 stride; // bytes from one to the next
    u32 layout, way, base;
};

static struct plan plan_of(u32 sweep) {
    static const u32 strides[] = {64, 8, 256, 1024};
    // The ways that make every access a page's journey have a smaller share.
    static const u8 ways[] = {0, 3, 2, 0, 3, 2, 0, 1};
    struct plan p;
    p.stride = strides[sweep % 4];
    p.n = p.stride * SWEEP <= REGION ? SWEEP : REGION / p.stride;
    p.layout = sweep / 4 % 3;
    p.way = ways[(sweep + sweep / 8) % 8];
    p.base = 4 * (sweep + 1);
    return p;
}

static inline var *x_of(const struct plan *p, u32 i) {
    return (var *)(vars + (p->layout == 2 ? 2 * i * p->stride : i * p->stride));
}

static inline var *y_of(const struct plan *p, u32 i) {
    switch (p->layout) {
    case 0: return (var *)(vars + REGION + i * p->stride);
    case 1: return (var *)(vars + REGION + (p->n - 1 - i) * p->stride);
    }
    return (var *)(vars + (2 * i + 1) * p->stride);
}

static void run(const struct test *t, const struct plan *p, u32 thread) {
    u32 first = 0, step = 1;
    switch (p->way) {
    case 1: step = PAGE / p->stride + 1; break;
    case 2:
        if (thread & 1) first = p->n - 1, step = p->n - 1; // backwards, modulo n
        break;
    case 3: first = thread * (p->n / THREADS); break;
    }
    for (u32 j = 0, i = first; j < p->n; j++, i = (i + step) & (p->n - 1))
        t->run[thread](x_of(p, i), y_of(p, i), p->base + 1, p->base + 2, &results[thread][i]);
}

// value turns what was read into 0, 1 or 2.
static u32 value(const struct test *t, const struct plan *p, u32 i, u32 raw) {
    if (raw < p->base) return 0;
    if (raw > p->base + 2) fail(S(t->name), S(": instance "), U(i), S(" holds "), U(raw), S(", which nobody wrote, base "), U(p->base));
    return raw - p->base;
}

static u32 watched(const struct test *t, const struct plan *p, u32 what, u32 i) {
    u32 raw;
    if (what == FX) raw = *x_of(p, i);
    else if (what == FY) raw = *y_of(p, i);
    else {
        const struct result *r = &results[(what - R0A) / 2][i];
        raw = (what - R0A) & 1 ? r->b : r->a;
    }
    return value(t, p, i, raw);
}

static void check(const struct test *t, const struct plan *p, struct tally *tally, u32 from, u32 to) {
    u32 told = 0;
    for (u32 i = from; i < to; i++) {
        u32 v[4] = {0}, key = 0;
        for (u32 k = 0; k < 4; k++) {
            if (t->watch[k]) v[k] = watched(t, p, t->watch[k], i);
            key = key * 3 + v[k];
        }
        tally->count[key]++;
        if (t->forbidden(v) && told++ < 2)
            say(S("forbidden: "), S(t->name), S(" instance "), U(i), S(", stride "), U(p->stride), S(", layout "), U(p->layout), S(", way "), U(p->way),
                S(", base "), U(p->base));
    }
}

// --- the report ----------------------------------------------------------------------------------------------------------------

// report prints a test's outcomes and returns how many instances had a forbidden one.
static u64 report(const struct test *t, u64 cpus) {
    u64 bad = 0;
    for (u32 key = 0; key < OUTCOMES; key++) {
        u64 n = 0;
        for (u64 c = 0; c < cpus; c++) n += tallies[c].count[key];
        if (!n) continue;
        u32 v[4] = {key / 27, key / 9 % 3, key / 3 % 3, key % 3};
        struct line l = {0};
        line_str(&l, t->name);
        for (u32 k = 0; k < 4 && t->watch[k]; k++) {
            line_str(&l, " ");
            line_str(&l, t->label[k]);
            line_u64(&l, v[k]);
        }
        line_str(&l, ": ");
        line_u64(&l, n);
        if (t->forbidden(v)) {
            bad += n;
            line_str(&l, " FORBIDDEN: ");
            line_str(&l, t->why);
        }
        line_end(&l);
    }
    return bad;
}

// run_test returns, on vCPU 0, how many instances had a forbidden outcome. All vCPUs go through it together; `sweep` numbers sweeps over all tests.
static u64 run_test(const struct test *t, u32 *sweep, u64 rounds, u64 cpu, u64 cpus) {
    for (u32 k = 0; k < OUTCOMES; k++) tallies[cpu].count[k] = 0;
    for (u64 done = 0; done < rounds; ++*sweep) {
        struct plan p = plan_of(*sweep);
        u32 thread = (u32)((cpu + *sweep) % cpus);
        barrier_spin(&ready, cpus);
        if (thread < t->threads) run(t, &p, thread);
        barrier_wait(&swept, cpus, 500);
        check(t, &p, &tallies[cpu], (u32)(p.n * cpu / cpus), (u32)(p.n * (cpu + 1) / cpus));
        barrier_wait(&checked, cpus, 500);
        done += p.n;
    }
    u64 bad = cpu ? 0 : report(t, cpus);
    barrier_wait(&checked, cpus, 500);
    return bad;
}

static int chosen(const struct test *t, const char *args) {
    u32 len;
    arg_word(args, 1, &len);
    if (!len || arg_is(args, 1, "all")) return t < &tests[TESTS - 1]; // all but the canary
    return arg_is(args, 1, t->name);
}

void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    (void)ram;
    u64 rounds = arg_u64(args, 0, 100000), bad = 0;
    u32 sweep = 0, ran = 0;
    if (cpus < 2 || cpus > MAX_CPUS) fail(S("litmus needs 2 to "), U(MAX_CPUS), S(" vCPUs, has "), U(cpus));
    if (rounds > (1ull << 29) / TESTS) fail(S("too many rounds: "), U(rounds));
    if (!cpu) say(S("litmus: "), U(cpus), S(" vCPUs, "), U(rounds), S(" rounds a test"));
    for (u32 i = 0; i < TESTS; i++) {
        const struct test *t = &tests[i];
        if (!chosen(t, args)) continue;
        if (t->threads > cpus) {
            if (!cpu) say(S(t->name), S(": skipped, needs "), U(t->threads), S(" vCPUs"));
            continue;
        }
        ran++;
        bad += run_test(t, &sweep, rounds, cpu, cpus);
    }
    if (cpu) idle_forever();
    if (!ran) fail(S("no such test, or too few vCPUs: "), S(args));
    say(S("litmus: "), U(ran), S(" tests, "), U(rounds * ran), S(" rounds, "), U(bad), S(" forbidden outcomes, "), U(clock_ms()), S(" ms"));
    vm_exit(bad ? 1 : 0);
}
