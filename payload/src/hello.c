// hello: every vCPU says hello in turn, vCPU 0 emits 0 to 9 and ends the VM.
#include "payload.h"

static struct flag turn;

void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    wait_at_least(&turn.value, (u32)cpu, 1000);
    say(S("hello from vCPU "), U(cpu), S(" of "), U(cpus), S(", "), U(ram >> 20), S(" MiB, \""), S(args), S("\", "), U(clock_ms()), S(" ms"));
    store(&turn.value, (u32)cpu + 1);
    if (cpu) idle_forever();
    wait_at_least(&turn.value, (u32)cpus, 1000);
    for (u32 i = 0; i < 10; i++) emit(i);
    vm_exit(0);
}
