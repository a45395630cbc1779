// Writes one word at 8 MiB, then does a port output, for ever.
#include "payload.h"
void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    (void)cpus, (void)ram, (void)args;
    if (cpu) idle_forever();
    for (u32 i = 0;; i++) {
        *(volatile u32 *)(8 << 20) = i;
        emit(i);
    }
}
