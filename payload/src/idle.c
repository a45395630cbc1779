// idle: all vCPUs idle for ever.
#include "payload.h"

void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    (void)cpus, (void)ram, (void)args;
    if (!cpu) say(S("idle"));
    idle_forever();
}
