// image PAGES SEED [ROUND]: checks, for ever, a large piece of its own image, writing to some pages of it.
//
// At 32 MiB the image has PAGES pages, which the test appends: word i of them is i times an odd number. At its start the guest finds all of them so. Then each
// round writes to every sixteenth page, SEED of it and the round, and finds its own writes, those of the round before too, and nothing else; vCPU c of n does
// so on every n-th page. vCPU 0 emits the number of each round. In round ROUND, if there is one, it crashes.
#include "payload.h"

enum { WORDS = PAGE / 8, EACH = 16 };

static u64 *const image = (u64 *)0x2000000;

static u64 word(u64 i) { return i * 0x9e3779b97f4a7c15u; }

static void want(u64 i, u64 value, u64 round) {
    if (image[i] != value) fail(S("round "), U(round), S(": word "), U(i), S(" is "), X(image[i]), S(", want "), X(value));
}

void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    u64 pages = arg_u64(args, 0, 0), seed = arg_u64(args, 1, 0), crash = arg_u64(args, 2, 0);
    if (!pages || (u64)image + pages * PAGE > ram) fail(S("PAGES must be 1 to "), U((ram - (u64)image) / PAGE), S(", is "), U(pages));
    for (u64 page = cpu; page < pages; page += cpus)
        for (u64 i = page * WORDS; i < (page + 1) * WORDS; i++) want(i, word(i), 0);
    for (u64 round = 1;; round++) {
        for (u64 page = cpu; page < pages; page += cpus) {
            u64 at = page * WORDS;
            int mine = page % EACH == seed % EACH;
            if (mine) {
                want(at + 1, round == 1 ? word(at + 1) : round - 1, round);
                image[at] = word(at) + seed, image[at + 1] = round;
            }
            want(at, mine ? word(at) + seed : word(at), round);
            want(at + 1, mine ? round : word(at + 1), round);
            for (u64 i = 2; i < WORDS; i++) want(at + i, word(at + i), round);
        }
        if (cpu == 0) emit((u32)round);
        if (cpu == 0 && round == crash) __asm__ volatile("ud2");
    }
}
