// phases [ROUNDS] [SCALE] [LINGER_MS]: a mixed workload whose vCPUs change what they share. Each round has four phases:
//
//	own     every vCPU changes, again and again, pages that another vCPU had the round before
//	read    one vCPU has written a table, a different one each round; all look things up in it
//	pipe    one vCPU fills a buffer, another reads it, over and over; a different pair each round
//	lock    the same with records that a lock protects
//
// At the end it emits, for each phase, how long all its rounds took in microseconds, then idles for LINGER_MS, so that somebody can read counters, and
// exits 0; or 1 if a value was wrong.
#include "payload.h"

enum { PHASES = 4, MAX_CPUS = 8, OWN_PAGES = 256, TABLE_PAGES = 512, BUFFER_PAGES = 8, RECORD_PAGES = 4, LOCKED = 500, WORDS = PAGE / 8 };

typedef volatile u64 words[WORDS];

static words own[MAX_CPUS][OWN_PAGES] __attribute__((aligned(4096)));
static words table[TABLE_PAGES] __attribute__((aligned(4096)));
static words buffer[BUFFER_PAGES] __attribute__((aligned(4096)));
static words record[RECORD_PAGES] __attribute__((aligned(4096)));
static struct flag filled, taken, lock;
static struct barrier begun, ended;
static u32 took[PHASES]; // vCPU 0's

static inline u32 random_of(u64 *seed) {
    *seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
    return (u32)(*seed >> 33);
}

static void own_phase(u64 cpu, u64 cpus, u64 round, u64 scale) {
    words *mine = own[(cpu + round) % cpus];
    u64 seed = cpu + round * 977;
    for (u64 i = 0; i < scale * OWN_PAGES * 16; i++) {
        u32 page = random_of(&seed) % OWN_PAGES;
        mine[page][0]++;
        mine[page][1 + i % (WORDS - 1)] = i;
    }
}

static void write_table(u64 round) {
    for (u32 p = 0; p < TABLE_PAGES; p++)
        for (u32 i = 0; i < WORDS; i += 64) table[p][i] = p + round;
}

static void read_phase(u64 cpu, u64 round, u64 scale) {
    u64 seed = cpu * 31 + round;
    for (u64 i = 0; i < scale * TABLE_PAGES * 16; i++) {
        u32 page = random_of(&seed) % TABLE_PAGES, word = random_of(&seed) % (WORDS / 64) * 64;
        if (table[page][word] != page + round) fail(S("table page "), U(page), S(" is not of round "), U(round));
    }
}

static void pipe_phase(u64 cpu, u64 cpus, u64 round, u64 scale) {
    u64 from = round % cpus, to = (round + 1) % cpus;
    u32 items = (u32)(scale * 20), first = (u32)round * items; // both flags rise for ever
    for (u32 n = 1; n <= items; n++) {
        if (cpu == from) {
            wait_at_least(&taken.value, first + n - 1, 50);
            for (u32 p = 0; p < BUFFER_PAGES; p++) buffer[p][n % WORDS] = first + n;
            store(&filled.value, first + n);
        } else if (cpu == to) {
            wait_at_least(&filled.value, first + n, 50);
            for (u32 p = 0; p < BUFFER_PAGES; p++)
                if (buffer[p][n % WORDS] != first + n) fail(S("item "), U(first + n), S(" is "), U(buffer[p][n % WORDS]));
            store(&taken.value, first + n);
        }
    }
}

static void lock_phase(u64 cpu, u64 cpus, u64 round, u64 scale) {
    if (cpu != (round + 1) % cpus && cpu != (round + 2) % cpus) return;
    for (u64 n = 0; n < scale * LOCKED; n++) {
        for (u32 tries = 0; load(&lock.value) || __atomic_exchange_n(&lock.value, 1, __ATOMIC_ACQUIRE);) {
            if (++tries % 256) pause_cpu();
            else idle_us(20);
        }
        for (u32 p = 0; p < RECORD_PAGES; p++) record[p][0]++;
        store(&lock.value, 0);
        for (u32 i = 0; i < 100; i++) pause_cpu(); // work outside
    }
}

static u64 phase_begins(u64 cpus) {
    barrier_wait(&begun, cpus, 100);
    return rdtsc();
}

static void phase_ends(u64 cpu, u64 cpus, u32 phase, u64 since, u64 *sum) {
    barrier_wait(&ended, cpus, 100);
    if (!cpu) sum[phase] += rdtsc() - since;
}

void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    (void)ram;
    u64 rounds = arg_u64(args, 0, 6), scale = arg_u64(args, 1, 10), linger = arg_u64(args, 2, 0), sum[PHASES] = {0};
    if (cpus < 2 || cpus > MAX_CPUS) fail(S("phases needs 2 to "), U(MAX_CPUS), S(" vCPUs, has "), U(cpus));
    if (rounds * scale > 10000000) fail(S("too many rounds"));
    barrier_wait(&begun, cpus, 1000);
    u64 tsc = rdtsc();
    u32 ms = clock_ms();
    for (u64 round = 0; round < rounds; round++) {
        u64 since = phase_begins(cpus);
        own_phase(cpu, cpus, round, scale);
        phase_ends(cpu, cpus, 0, since, sum);
        if (cpu == round % cpus) write_table(round);
        since = phase_begins(cpus);
        read_phase(cpu, round, scale);
        phase_ends(cpu, cpus, 1, since, sum);
        since = phase_begins(cpus);
        pipe_phase(cpu, cpus, round, scale);
        phase_ends(cpu, cpus, 2, since, sum);
        since = phase_begins(cpus);
        lock_phase(cpu, cpus, round, scale);
        phase_ends(cpu, cpus, 3, since, sum);
    }
    if (cpu) idle_forever();
    for (u32 p = 0; p < RECORD_PAGES; p++)
        if (record[p][0] != rounds * scale * LOCKED * 2) fail(S("record "), U(p), S(" is "), U(record[p][0]), S(", want "), U(rounds * scale * LOCKED * 2));
    u64 all = rdtsc() - tsc, micros = (u64)(clock_ms() - ms) * 1000;
    for (u32 p = 0; p < PHASES; p++) {
        took[p] = (u32)(sum[p] / (all / 1000 + 1) * micros / 1000);
        emit(took[p]);
    }
    say(S("phases: "), U(rounds), S(" rounds, own "), U(took[0]), S(" us, read "), U(took[1]), S(" us, pipe "), U(took[2]), S(" us, lock "), U(took[3]), S(" us"));
    while (linger) {
        u64 step = linger < 1000 ? linger : 1000;
        idle_us((u32)step * 1000);
        linger -= step;
    }
    vm_exit(0);
}
