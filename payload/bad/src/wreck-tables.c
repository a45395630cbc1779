// Overwrites the loader's page tables, then touches memory until the processor looks them up again.
#include "payload.h"
void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    (void)cpus, (void)args;
    if (cpu) idle_forever();
    for (volatile u64 *p = (u64 *)0x2000; p < (u64 *)0x10000; p++) *p = 0xffffffffffffffffull;
    for (u64 a = 0x800000; a < ram; a += PAGE) (*(volatile u64 *)a)++;
    vm_exit(0);
}
