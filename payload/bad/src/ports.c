// Does port output and input for ever, without a pause.
#include "payload.h"
void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    (void)cpus, (void)ram, (void)args;
    if (cpu) idle_forever();
    for (;;) {
        emit(clock_ms());
    }
}
