// REP OUTSB to the console: legal, but several items an exit.
#include "payload.h"
void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    (void)cpus, (void)ram, (void)args;
    if (cpu) idle_forever();
    const char *s = "a string at once\n";
    u64 n = 17;
    __asm__ volatile("rep outsb" : "+S"(s), "+c"(n) : "d"(0x3f8) : "memory");
    vm_exit(0);
}
