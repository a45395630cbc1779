// Counts in an SSE register and holds known values in the others and in the x87 stack, over port exits of both directions and over whatever
// stops it in between; ends with status 0 after args[0] records. For tests that move a running vCPU.
#include "payload.h"

static u64 read_xmm0(void) {
    u64 v;
    __asm__ volatile("movq %%xmm0, %0" : "=r"(v));
    return v;
}

void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args) {
    (void)cpus, (void)ram;
    if (cpu) idle_forever();
    u64 n = arg_u64(args, 0, 100), one = 1, mark = 0x1122334455667788ull;
    __asm__ volatile("pxor %%xmm0, %%xmm0\n movq %0, %%xmm1\n movq %1, %%xmm9\n movq %1, %%xmm15\n fldpi" : : "r"(one), "r"(mark));
    u32 last = clock_ms();
    for (u64 i = 0; i < n; i++) {
        if (read_xmm0() != i) vm_exit(2);
        emit((u32)i);
        u32 now = clock_ms();
        if (now < last) vm_exit(3);
        last = now;
        for (volatile u32 spin = 0; spin < 2000; spin++) {}
        __asm__ volatile("paddq %%xmm1, %%xmm0" : : : "memory");
        u64 m9, m15;
        __asm__ volatile("movq %%xmm9, %0\n movq %%xmm15, %1" : "=r"(m9), "=r"(m15));
        if (m9 != mark || m15 != mark) vm_exit(4);
    }
    u64 pi;
    __asm__ volatile("fstpl %0" : "=m"(pi));
    vm_exit(pi == 0x400921fb54442d18ull ? 0 : 5);
}
