// A kernel that has much to lose: it counts, a number a tick of its local APIC's timer, keeps the count in several pages of memory and, if it has a disk,
// on that, checks what it finds there, and prints each number on a line. So a machine that goes on elsewhere shows that its processor, local APIC,
// serial port, memory and disk did. It obeys what is typed: P switches it off, R resets it; a NUL and all else it ignores. If it finds
// numbers on its disk it begins by printing "last N", the largest.
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

static inline void out8(u16 port, u8 v) { __asm__ volatile("outb %0, %1" : : "a"(v), "d"(port) : "memory"); }
static inline u8 in8(u16 port) {
    u8 v;
    __asm__ volatile("inb %1, %0" : "=a"(v) : "d"(port) : "memory");
    return v;
}
static inline void out32(u16 port, u32 v) { __asm__ volatile("outl %0, %1" : : "a"(v), "d"(port) : "memory"); }
static inline u32 in32(u16 port) {
    u32 v;
    __asm__ volatile("inl %1, %0" : "=a"(v) : "d"(port) : "memory");
    return v;
}
static inline void wrmsr(u32 msr, u64 v) { __asm__ volatile("wrmsr" : : "c"(msr), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
static inline u64 rdmsr(u32 msr) {
    u32 lo, hi;
    __asm__ volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr));
    return (u64)hi << 32 | lo;
}

static void print(const char *s) {
    for (; *s; s++) out8(0x3f8, (u8)*s);
}

static void print_u32(u32 v) {
    char text[12];
    u32 n = sizeof text;
    text[--n] = 0;
    do text[--n] = (char)('0' + v % 10);
    while (v /= 10);
    print(text + n);
}

static void __attribute__((noreturn)) off(void) {
    out8(0x600, 0x34);
    for (;;) __asm__ volatile("cli; hlt");
}

// What the driver for payloads needs.
#define S(text) (text)
#define U(n) ""
#define fail(a, ...)    \
    do {                \
        print("BAD ");  \
        print(a);       \
        off();          \
    } while (0)
static inline void pause_cpu(void) { __asm__ volatile("pause"); }
static inline void idle_us(u32 us) { (void)us; }
#include "../../../../payload/src/virtio_blk.h"

enum { VECTOR = 0x41, PAGES = 8, BLOCK = 4096, BLOCKS = 64 };

static struct {
    u16 low, selector, flags, middle;
    u32 high, zero;
} idt[256] __attribute__((aligned(4096)));

static u32 low[PAGES][1024] __attribute__((aligned(4096)));
static volatile u32 (*kept)[1024] = low; // above 4 GiB if there is memory
static u32 block[BLOCK / 4] __attribute__((aligned(4096)));
static struct disk disk;
volatile u32 ticks;

void on_timer(void);
void on_anything(void);

static void gate(u32 vector, void (*to)(void)) {
    u64 a = (u64)to;
    idt[vector].low = (u16)a, idt[vector].selector = 0x18, idt[vector].flags = 0x8e00, idt[vector].middle = (u16)(a >> 16), idt[vector].high = 0;
}

static void bad(const char *what, u32 got, u32 want) {
    print("BAD ");
    print(what);
    print(" ");
    print_u32(got);
    print(" want ");
    print_u32(want);
    print("\n");
    off();
}

static void sleep_a_tick(u32 seen) {
    wrmsr(0x83e, 0xb);       // the timer counts nanoseconds
    wrmsr(0x832, VECTOR);    // once
    wrmsr(0x838, 1000 * 1000);
    for (;;) {
        __asm__ volatile("cli");
        if (ticks != seen) break;
        __asm__ volatile("sti; hlt");
    }
}

static u32 kept_on_disk(u32 n) {
    if (disk_read(&disk, n % BLOCKS * (BLOCK / 512), block, BLOCK)) bad("read", n, n);
    return block[0];
}

static void keep_on_disk(u32 n) {
    for (u32 i = 0; i < 4; i++) block[i] = n;
    if (disk_write(&disk, n % BLOCKS * (BLOCK / 512), block, BLOCK) || disk_flush(&disk)) bad("write", n, n);
}

void kernel_main(void) {
    wrmsr(0x1b, rdmsr(0x1b) | 0xc00); // x2APIC
    wrmsr(0x80f, 0x1ff);
    for (u32 i = 0; i < 256; i++) gate(i, on_anything);
    gate(VECTOR, on_timer);
    struct {
        u16 pad[3], limit;
        void *base;
    } idtr = {{0}, sizeof idt - 1, idt};
    __asm__ volatile("lidt %0" : : "m"(idtr.limit));
    volatile u32 *high = (volatile u32 *)(1ull << 32);
    *high = 42;
    if (*high == 42) kept = (volatile u32(*)[1024])high;
    int has_disk = disk_open(&disk, 0);
    if (has_disk) {
        u32 last = 0;
        for (u32 i = 0; i < BLOCKS; i++) {
            u32 v = kept_on_disk(i);
            if (v > last) last = v;
        }
        if (last) {
            print("last ");
            print_u32(last);
            print("\n");
        }
    }
    for (u32 n = 0;; n++) {
        sleep_a_tick(n);
        volatile u32 *was = &kept[(n - 1) % PAGES][(n - 1) % 1024];
        if (n && *was != n - 1) bad("memory", *was, n - 1);
        kept[n % PAGES][n % 1024] = n;
        if (has_disk && n % 4 == 0) {
            if (n && kept_on_disk(n - 4) != n - 4) bad("disk", block[0], n - 4);
            keep_on_disk(n);
        }
        print_u32(n);
        print("\n");
        while (in8(0x3fd) & 1) {
            u8 c = in8(0x3f8);
            if (c == 'P') off();
            if (c == 'R') out8(0x602, 0x0f);
        }
    }
}
