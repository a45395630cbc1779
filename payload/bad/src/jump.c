// A jump to an address that nothing maps.
#include "payload.h"
void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    (void)cpus, (void)ram, (void)args;
    if (cpu) idle_forever();
    __asm__ volatile("jmp *%0" : : "r"(0x00007000deadb000ull));
}
