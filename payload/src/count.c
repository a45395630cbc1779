// count [N] [RATE_HZ]: vCPU 0 emits 0, 1, 2, ..., N-1 at RATE_HZ, the others idle. N = 0 goes on for ever, RATE_HZ = 0 does not wait.
//
// The pace is kept against the VM's clock: after a pause of the VM it catches up, so that the number emitted last tells how much time the
// guest has lived through.
#include "payload.h"

void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    (void)cpus, (void)ram;
    if (cpu) idle_forever();
    u64 n = arg_u64(args, 0, 100), rate = arg_u64(args, 1, 100);
    say(S("count to "), U(n), S(" at "), U(rate), S(" Hz"));
    u32 start = clock_ms();
    for (u64 i = 0; !n || i < n; i++) {
        if (rate) {
            // Number i is due i/rate seconds after the start.
            u64 due_us = i * 1000000 / rate, now_us;
            while ((now_us = (u64)(clock_ms() - start) * 1000) < due_us) {
                u64 wait_us = due_us - now_us;
                idle_us(wait_us < 1000000 ? (u32)wait_us : 1000000);
            }
        }
        emit((u32)i);
    }
    say(S("counted"));
    vm_exit(0);
}
