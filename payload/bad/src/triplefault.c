// An invalid instruction, and no IDT to catch it.
#include "payload.h"
void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    (void)cpus, (void)ram, (void)args;
    if (cpu) idle_forever();
    say(S("about to fault"));
    __asm__ volatile("mov $0x1234, %%ebx\n ud2" : : : "rbx", "memory");
}
