// Input from a port that the ABI does not have.
#include "payload.h"
void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    (void)cpus, (void)ram, (void)args;
    if (cpu) idle_forever();
    vm_exit(in32(0x1234) ? 1 : 2);
}
