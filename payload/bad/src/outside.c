// A write beyond the end of memory.
#include "payload.h"
void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    (void)cpus, (void)args;
    if (cpu) idle_forever();
    *(volatile u64 *)(ram + (3ull << 30)) = 1;
    vm_exit(0);
}
