// lock [ROUNDS] [spin]: all vCPUs increment shared counters ROUNDS times each, under two spinlocks and by an atomic, all on pages of their own. At the
// end each sum must be exact: exit 0, or 1.
//
// On a VM that spans servers the pages of a contended lock travel. The locks are taken with an exchange only after a plain read has seen them
// free (test and test-and-set, and a ticket lock whose waiters only read), and a waiter that has spun for a while idles. No vCPU may run far ahead of
// the others: left alone, each would do most of its rounds while the pages happen to be with it, and the locks would hardly be contended.
//
// With "spin" nobody idles, as in a kernel whose spinlocks do not know that it is a guest: a vCPU keeps its processor busy for as long as it is let, and waits for one
// that does not run.
#include "payload.h"

static struct flag tas_lock, ticket_next, ticket_serving;
static struct flag tas_sum, ticket_sum, atomic_sum;
static struct flag per_cpu[1024]; // own increments, and so progress

enum { LOOK = 64, AHEAD = 512 }; // rounds between two looks at the others, and how far one may be ahead of the last
static struct barrier start, end;

static int spin; // read only, but before the start

static void backoff(u32 *tries) {
    if (spin || ++*tries % 256) pause_cpu();
    else idle_us(20);
}

static void tas_increment(void) {
    for (u32 tries = 0; load(&tas_lock.value) || __atomic_exchange_n(&tas_lock.value, 1, __ATOMIC_ACQUIRE);) backoff(&tries);
    tas_sum.value++; // a plain read and write: only the lock makes them one
    store(&tas_lock.value, 0);
}

static void ticket_increment(void) {
    u32 mine = __atomic_fetch_add(&ticket_next.value, 1, __ATOMIC_RELAXED);
    for (u32 tries = 0; load(&ticket_serving.value) != mine;) backoff(&tries);
    ticket_sum.value++;
    store(&ticket_serving.value, mine + 1);
}

static void wait_for_others(u64 round, u64 cpus) {
    for (u64 c = 0; round >= AHEAD && c < cpus; c++) {
        while (spin && (int)(load(&per_cpu[c].value) - (u32)(round - AHEAD)) < 0) pause_cpu();
        wait_at_least(&per_cpu[c].value, (u32)(round - AHEAD), 200);
    }
}

static int check(const char *what, u32 sum, u64 want) {
    say(S(what), S(" sum "), U(sum), S(sum == want ? ", exact" : ", WRONG, want "), sum == want ? S("") : U(want));
    return sum != want;
}

void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    (void)ram;
    u64 rounds = arg_u64(args, 0, 5000);
    u32 len;
    (void)arg_word(args, 1, &len);
    if (len && !arg_is(args, 1, "spin")) fail(S("the second argument is spin or nothing"));
    if (len && !cpu) spin = 1;
    if (cpus > sizeof per_cpu / sizeof per_cpu[0]) fail(S("too many vCPUs: "), U(cpus));
    if (rounds * cpus >> 32) fail(S("too many rounds for 32-bit sums: "), U(rounds));
    if (!cpu) say(S("lock: "), U(cpus), S(" vCPUs, "), U(rounds), S(" rounds each"));
    barrier_spin(&start, cpus); // together, or they would hardly meet
    for (u64 i = 0; i < rounds; i++) {
        if (i % LOOK == 0) wait_for_others(i, cpus);
        tas_increment();
        add(&atomic_sum.value, 1);
        ticket_increment();
        per_cpu[cpu].value++;
        if (!cpu && rounds >= 10 && (i + 1) % (rounds / 10) == 0) say(S("lock: "), U(i + 1), S(" of "), U(rounds), S(", "), U(clock_ms()), S(" ms"));
    }
    barrier_wait(&end, cpus, 1000);
    if (cpu) idle_forever();
    u64 own = 0;
    for (u64 i = 0; i < cpus; i++) own += per_cpu[i].value;
    u64 want = rounds * cpus;
    int bad = check("spinlock", tas_sum.value, want) + check("ticket lock", ticket_sum.value, want) + check("atomic", atomic_sum.value, want) +
              check("per-vCPU", (u32)own, want);
    vm_exit(bad ? 1 : 0);
}
