// The payload ABI, version 1, in C. A payload is one freestanding file that includes this one and defines guest_main.
//
// Every vCPU starts in guest_main: 64-bit mode, CPL 3, IOPL 3, interrupts off, SSE enabled, a stack of 64 KiB of its own. All memory from
// 0 to ram is mapped at its own address; the program lies where it was linked, at 2 MiB or above. Returning idles the vCPU for ever.
#ifndef CELLVISOR_PAYLOAD_H
#define CELLVISOR_PAYLOAD_H

#include <stdint.h>
#include <stddef.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

enum { PAGE = 4096 };

void guest_main(u64 cpu, u64 cpus, u64 ram, const char *args);

// The entry: registers to the C convention. The loader aligns RSP to 16 bytes.
__asm__(".globl _start\n"
        ".section .text.start,\"ax\"\n"
        "_start:\n"
        "    xor %ebp, %ebp\n"
        "    call guest_main\n" // RDI, RSI, RDX, RCX are its arguments already
        "1:  mov $1000000, %eax\n"
        "    out %eax, $0xe4\n"
        "    jmp 1b\n"
        ".text\n");

// --- ports ---------------------------------------------------------------------------------------------------------------------

static inline void out8(u16 port, u8 v) { __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port) : "memory"); }
static inline void out32(u16 port, u32 v) { __asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port) : "memory"); }
static inline u32 in32(u16 port) {
    u32 v;
    __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port) : "memory");
    return v;
}

static inline void put_char(char c) { out8(0x3f8, (u8)c); }
static inline void idle_us(u32 us) { out32(0xe4, us); }
static inline void emit(u32 record) { out32(0xe8, record); }
static inline u32 clock_ms(void) { return in32(0xec); }

static inline void __attribute__((noreturn)) vm_exit(u32 status) {
    out32(0xe0, status);
    for (;;) idle_us(1000000);
}

static inline void __attribute__((noreturn)) idle_forever(void) {
    for (;;) idle_us(1000000);
}

// --- processor -----------------------------------------------------------------------------------------------------------------

static inline void pause_cpu(void) { __builtin_ia32_pause(); }

static inline u64 rdtsc(void) {
    u32 lo, hi;
    // LFENCE on both sides: neither what is measured nor what follows may cross the reading.
    __asm__ volatile("lfence\n rdtsc\n lfence" : "=a"(lo), "=d"(hi) : : "memory");
    return (u64)hi << 32 | lo;
}

static inline u32 load(const volatile u32 *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void store(volatile u32 *p, u32 v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline u32 add(volatile u32 *p, u32 v) { return __atomic_add_fetch(p, v, __ATOMIC_SEQ_CST); }

// --- console -------------------------------------------------------------------------------------------------------------------

// A line is put together here and printed at once, by one vCPU at a time, so that lines do not mix.
struct line {
    u32 n;
    char text[252];
};

static inline void line_str(struct line *l, const char *s) {
    while (*s && l->n < sizeof l->text) l->text[l->n++] = *s++;
}

static inline void line_u64(struct line *l, u64 v) {
    char digits[20];
    u32 n = 0;
    do digits[n++] = (char)('0' + v % 10);
    while (v /= 10);
    while (n && l->n < sizeof l->text) l->text[l->n++] = digits[--n];
}

static inline void line_hex(struct line *l, u64 v) {
    line_str(l, "0x");
    int shift = 60;
    while (shift && !(v >> shift)) shift -= 4;
    for (; shift >= 0 && l->n < sizeof l->text; shift -= 4) l->text[l->n++] = "0123456789abcdef"[v >> shift & 15];
}

static struct {
    volatile u32 taken;
    volatile u32 failed;
    u8 rest[PAGE - 8];
} __attribute__((aligned(4096))) console;

static inline void line_end(struct line *l) {
    while (__atomic_exchange_n(&console.taken, 1, __ATOMIC_ACQUIRE)) idle_us(100);
    for (u32 i = 0; i < l->n; i++) put_char(l->text[i]);
    put_char('\n');
    store(&console.taken, 0);
    l->n = 0;
}

// say prints strings and numbers: say(S("sum "), U(n), S(" is wrong, want "), X(m), END)
struct part {
    enum { PART_END, PART_STR, PART_U64, PART_HEX } kind;
    const char *s;
    u64 v;
};
#define S(text) ((struct part){PART_STR, (text), 0})
#define U(value) ((struct part){PART_U64, 0, (value)})
#define X(value) ((struct part){PART_HEX, 0, (value)})
#define say(...) say_parts((const struct part[]){__VA_ARGS__, {PART_END, 0, 0}})

static inline void say_parts(const struct part *p) {
    struct line l;
    l.n = 0;
    for (; p->kind != PART_END; p++) {
        if (p->kind == PART_STR) line_str(&l, p->s);
        else if (p->kind == PART_U64) line_u64(&l, p->v);
        else line_hex(&l, p->v);
    }
    line_end(&l);
}

// fail says why and ends the VM with status 1. When several vCPUs fail, the first one has the word.
#define fail(...)                                                                     \
    do {                                                                              \
        if (__atomic_exchange_n(&console.failed, 1, __ATOMIC_ACQ_REL)) idle_forever(); \
        say(S("FAIL: "), __VA_ARGS__);                                                \
        vm_exit(1);                                                                   \
    } while (0)

// --- arguments -----------------------------------------------------------------------------------------------------------------

// arg_word returns the n-th word of the arguments, from 0, and its length; length 0 if there is none.
static inline const char *arg_word(const char *args, u32 n, u32 *len) {
    for (;; n--) {
        while (*args == ' ') args++;
        const char *start = args;
        while (*args && *args != ' ') args++;
        *len = (u32)(args - start);
        if (!*len || !n) return start;
    }
}

// arg_u64 returns the n-th word as a number, or otherwise if there is none.
static inline u64 arg_u64(const char *args, u32 n, u64 otherwise) {
    u32 len;
    const char *w = arg_word(args, n, &len);
    u64 v = 0;
    for (u32 i = 0; i < len; i++) {
        if (w[i] < '0' || w[i] > '9') fail(S("argument "), U(n + 1), S(" is not a number: "), S(w));
        v = v * 10 + (u64)(w[i] - '0');
    }
    return len ? v : otherwise;
}

// arg_is tells whether the n-th word is the given one.
static inline int arg_is(const char *args, u32 n, const char *word) {
    u32 len, i = 0;
    const char *w = arg_word(args, n, &len);
    while (i < len && word[i] == w[i]) i++;
    return i == len && !word[i];
}

// --- waiting and meeting -------------------------------------------------------------------------------------------------------

// What several vCPUs wait on has a page of its own: on a VM that spans servers each write to a page takes it away from all others, and
// with it everything else on it.
struct flag {
    volatile u32 value;
    u8 rest[PAGE - 4];
} __attribute__((aligned(4096)));

// wait_at_least waits until *p has reached value (in wrap-around order). A vCPU that spins keeps a processor from the others, and perhaps
// from the one that it waits for, so it soon idles, in steps that grow up to max_idle_us.
static inline void wait_at_least(const volatile u32 *p, u32 value, u32 max_idle_us) {
    u32 us = 10;
    for (u32 spins = 0; (int)(load(p) - value) < 0;) {
        if (spins < 64) {
            spins++;
            pause_cpu();
            continue;
        }
        idle_us(us);
        us = us * 2 < max_idle_us ? us * 2 : max_idle_us;
    }
}

// A barrier for any number of vCPUs. Each arrival is one write to one page and the release another.
struct barrier {
    struct flag arrived, released;
};

static inline void barrier_wait(struct barrier *b, u64 cpus, u32 max_idle_us) {
    u32 generation = load(&b->released.value);
    if (add(&b->arrived.value, 1) == cpus) {
        store(&b->arrived.value, 0);
        store(&b->released.value, generation + 1);
        return;
    }
    wait_at_least(&b->released.value, generation + 1, max_idle_us);
}

// barrier_spin is barrier_wait for who wants all vCPUs to leave at the same moment: it spins for longer before it idles.
static inline void barrier_spin(struct barrier *b, u64 cpus) {
    u32 generation = load(&b->released.value);
    if (add(&b->arrived.value, 1) == cpus) {
        store(&b->arrived.value, 0);
        store(&b->released.value, generation + 1);
        return;
    }
    for (u32 spins = 0; spins < 20000; spins++) {
        if (load(&b->released.value) != generation) return;
        pause_cpu();
    }
    wait_at_least(&b->released.value, generation + 1, 500);
}

// --- what gcc may call ---------------------------------------------------------------------------------------------------------

__attribute__((used)) void *memset(void *to, int v, size_t n) {
    u8 *p = to;
    __asm__ volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(v) : "memory");
    return to;
}

__attribute__((used)) void *memcpy(void *to, const void *from, size_t n) {
    void *p = to;
    __asm__ volatile("rep movsb" : "+D"(p), "+S"(from), "+c"(n) : : "memory");
    return to;
}

#endif
