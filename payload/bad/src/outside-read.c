// A read beyond the end of memory.
#include "payload.h"
void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    (void)cpus, (void)args;
    if (cpu) idle_forever();
    vm_exit(*(volatile u32 *)ram);
}
