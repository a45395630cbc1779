// walk [MIB] [PASSES]: every vCPU fills its share of memory with a pattern, then checks the share of another, PASSES times. Exit 0, or 1 on the first
// word that is wrong. The default is all memory that the payload does not lie in.
#include "payload.h"

extern u8 _end[];

enum { WORDS = PAGE / 8, MAX_CPUS = 1024 };

static struct sum {
    u64 value;
} __attribute__((aligned(4096))) sums[MAX_CPUS];

static struct barrier filled, checked;

// pattern is what the word at an address holds after a pass: a mixture (splitmix64) in which no two words or passes are alike.
static u64 pattern(u64 addr, u64 pass) {
    u64 z = addr + pass * 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

// fill writes pages [from, to). Memory that nobody has written yet must be zero: some pages are looked at first (not all, as that costs a
// second fault each).
static void fill(u64 start, u64 from, u64 to, u64 pass) {
    for (u64 page = from; page < to; page++) {
        volatile u64 *p = (volatile u64 *)(start + page * PAGE);
        if (!pass && page % 16 == 0)
            for (u32 i = 0; i < WORDS; i++)
                if (p[i]) fail(S("fresh memory at "), X((u64)&p[i]), S(" holds "), X(p[i]));
        for (u32 i = 0; i < WORDS; i++) p[i] = pattern((u64)&p[i], pass);
    }
}

// check reads pages [from, to) and returns their checksum.
static u64 check(u64 start, u64 from, u64 to, u64 pass, u64 cpu) {
    u64 sum = 0;
    for (u64 page = from; page < to; page++) {
        volatile u64 *p = (volatile u64 *)(start + page * PAGE);
        for (u32 i = 0; i < WORDS; i++) {
            u64 v = p[i], want = pattern((u64)&p[i], pass);
            if (v != want) fail(S("vCPU "), U(cpu), S(" pass "), U(pass), S(": address "), X((u64)&p[i]), S(" holds "), X(v), S(", want "), X(want));
            sum += v;
        }
    }
    return sum;
}

void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    u64 start = ((u64)_end + PAGE - 1) & ~(u64)(PAGE - 1), most = (ram - start) / PAGE;
    u64 pages = arg_u64(args, 0, 0) << 8, passes = arg_u64(args, 1, 2);
    if (cpus > MAX_CPUS) fail(S("too many vCPUs: "), U(cpus));
    if (!pages || pages > most) pages = most;
    if (!cpu) say(S("walk: "), U(pages), S(" pages from "), X(start), S(", "), U(cpus), S(" vCPUs, "), U(passes), S(" passes"));
    for (u64 pass = 0; pass < passes; pass++) {
        fill(start, pages * cpu / cpus, pages * (cpu + 1) / cpus, pass);
        barrier_wait(&filled, cpus, 2000);
        u64 other = (cpu + 1 + pass % (cpus > 1 ? cpus - 1 : 1)) % cpus;
        sums[cpu].value = check(start, pages * other / cpus, pages * (other + 1) / cpus, pass, cpu);
        barrier_wait(&checked, cpus, 2000);
        if (cpu) continue;
        u64 sum = 0;
        for (u64 c = 0; c < cpus; c++) sum += sums[c].value;
        say(S("walk: pass "), U(pass), S(" right, checksum "), X(sum), S(", "), U(clock_ms()), S(" ms"));
    }
    if (cpu) idle_forever();
    vm_exit(0);
}
