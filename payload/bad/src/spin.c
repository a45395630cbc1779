// All vCPUs spin for ever, without an exit.
#include "payload.h"
void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    (void)cpu, (void)cpus, (void)ram, (void)args;
    for (;;) __asm__ volatile("" : : : "memory");
}
