// idle [MICROS]: all vCPUs idle for ever, MICROS at a time; 0 is as often as it goes.
#include "payload.h"

void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    (void)cpus, (void)ram;
    u32 micros = (u32)arg_u64(args, 0, 1000000);
    if (!cpu) say(S("idle"));
    for (;;) idle_us(micros);
}
