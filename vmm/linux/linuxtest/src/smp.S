# A kernel for two processors that may live on different servers. The first starts the second; they interrupt each other while they halt, pass
# values through memory, compare time stamp counters, use timers, and the second switches the machine off. It prints one letter a step:
#
#	A  the boot processor runs, with its local APIC in x2APIC mode
#	B  printed by the second processor: it was started, and reaches the devices
#	P  the processors woke each other from HLT, as often as the number at offset 8 says; the time stamp counter went forward all the time
#	T  the timers of both work
#	N  so does a non-maskable interrupt
#	I  the second one came back after another INIT and start-up
#	X  a time stamp counter went back; E: a count is wrong
#
# Build: make -C vmm/linux/linuxtest

#define VECTOR_PING  0x40
#define VECTOR_TIMER 0x41
#define VECTOR_ALARM 0x42	/* to the second: set your timer */
#define VECTOR_OFF   0x43	/* to the second: switch off */

#define TRAMPOLINE 0x8000
#define PML4  0x10000
#define PDPT  0x11000
#define PD    0x12000
#define IDT   0x18000
#define STACK1 0x30000
#define STACK2 0x38000

# Shared variables, each group on a page of its own.
#define UP      0x40000
#define PINGS1  0x41000
#define PINGS2  0x42000
#define TIMERS1 0x43000
#define TIMERS2 0x44000
#define NMIS    0x45000
#define CLOCK   0x46000
#define BAD     0x47000

	.code32
	.globl _start
_start:
	jmp 0f
	.balign 8
rounds:	.quad 0			# who makes a kernel of this sets it
0:	cli
	lgdt gdt_pointer
	ljmp $0x08, $1f
1:	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov $STACK1, %esp
	# Page tables: the first GiB, and the one with the devices, by 2 MiB.
	movl $(PDPT + 3), PML4
	movl $(PD + 3), PDPT
	mov $PD, %edi
	mov $0x83, %eax
	mov $512, %ecx
2:	mov %eax, (%edi)
	movl $0, 4(%edi)
	add $0x200000, %eax
	add $8, %edi
	loop 2b
	# The trampoline.
	mov $trampoline, %esi
	mov $TRAMPOLINE, %edi
	mov $(trampoline_end - trampoline), %ecx
	rep movsb
	jmp to_long

to_long:			# both processors, with a stack
	mov $0x20, %eax
	mov %eax, %cr4
	mov $PML4, %eax
	mov %eax, %cr3
	mov $0xc0000080, %ecx
	rdmsr
	or $0x100, %eax
	wrmsr
	mov %cr0, %eax
	or $0x80000000, %eax
	mov %eax, %cr0
	ljmp $0x18, $long_mode

	.code64
long_mode:
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	# x2APIC, switched on
	mov $0x1b, %ecx
	rdmsr
	or $0xc00, %eax
	wrmsr
	mov $0x80f, %ecx
	mov $0x1ff, %eax
	xor %edx, %edx
	wrmsr
	mov $0x802, %ecx
	rdmsr
	test %eax, %eax
	jnz second

first:
	mov $'A', %al
	call print
	# interrupt descriptors
	xor %ebx, %ebx
	mov $unexpected, %eax
3:	call gate
	inc %ebx
	cmp $256, %ebx
	jne 3b
	mov $2, %ebx
	mov $on_nmi, %eax
	call gate
	mov $VECTOR_PING, %ebx
	mov $on_ping, %eax
	call gate
	mov $VECTOR_TIMER, %ebx
	mov $on_timer, %eax
	call gate
	mov $VECTOR_ALARM, %ebx
	mov $on_alarm, %eax
	call gate
	mov $VECTOR_OFF, %ebx
	mov $on_off, %eax
	call gate
	lidt idt_pointer

	call start_second
	mov $1, %eax
	call await_up

	# ping-pong
	mov $1, %r12
4:	call stamp
	mov $VECTOR_PING, %eax
	call send2
5:	cli
	cmp %r12, PINGS1
	jae 6f
	sti
	hlt
	jmp 5b
6:	call check
	inc %r12
	cmp rounds, %r12
	jbe 4b
	mov rounds, %r13
	cmp %r13, PINGS2
	jne wrong
	cmpq $0, BAD
	mov $'X', %al
	jne fail
	mov $'P', %al
	call print

	# timers: this one's, then the other's, which tells by a ping
	call alarm
7:	cli
	cmpq $1, TIMERS1
	je 8f
	sti
	hlt
	jmp 7b
8:	mov $VECTOR_ALARM, %eax
	call send2
	inc %r13
9:	cli
	cmp %r13, PINGS1
	je 10f
	sti
	hlt
	jmp 9b
10:	cmpq $1, TIMERS2
	jne wrong
	mov $'T', %al
	call print

	mov $0x4400, %eax	# NMI
	call send2
	inc %r13
11:	cli
	cmp %r13, PINGS1
	je 12f
	sti
	hlt
	jmp 11b
12:	cmpq $1, NMIS
	jne wrong
	mov $'N', %al
	call print

	call start_second
	mov $2, %eax
	call await_up
	mov $'I', %al
	call print
	mov $'\n', %al
	call print

	mov $VECTOR_OFF, %eax
	call send2
13:	sti
	hlt
	jmp 13b

# start_second sends INIT and a start-up interrupt to the other processor.
start_second:
	mov $0x4500, %eax
	call send2
	mov $(0x4600 + (TRAMPOLINE >> 12)), %eax
	jmp send2

# await_up waits, spinning, until the second has come up eax times.
await_up:
	pause
	cmp %eax, UP
	jne await_up
	ret

wrong:	mov $'E', %al
fail:	call print
	jmp off

second:
	lidt idt_pointer
	mov $'B', %al
	call print
	lock incl UP
14:	sti
	hlt
	jmp 14b

# gate makes vector ebx lead to the code at eax.
gate:	mov %ebx, %edi
	shl $4, %edi
	add $IDT, %edi
	mov %ax, (%rdi)
	movw $0x18, 2(%rdi)
	movw $0x8e00, 4(%rdi)
	mov %eax, %edx
	shr $16, %edx
	mov %dx, 6(%rdi)
	movq $0, 8(%rdi)
	ret

# send2 and send1 send the interrupt command eax to a processor.
send2:	mov $1, %edx
	jmp send
send1:	xor %edx, %edx
send:	mov $0x830, %ecx
	wrmsr
	ret

# alarm sets the timer to 200 microseconds.
alarm:	xor %edx, %edx
	mov $0x83e, %ecx
	mov $0xb, %eax
	wrmsr
	mov $0x832, %ecx
	mov $VECTOR_TIMER, %eax
	wrmsr
	mov $0x838, %ecx
	mov $200000, %eax
	wrmsr
	ret

# stamp leaves the time for the other; check compares with what the other left.
stamp:	rdtsc
	shl $32, %rdx
	or %rdx, %rax
	mov %rax, CLOCK
	ret
check:	mov CLOCK, %rsi
	rdtsc
	shl $32, %rdx
	or %rdx, %rax
	cmp %rsi, %rax
	jae 15f
	incq BAD
15:	ret

print:	mov $0x3f8, %edx
	out %al, %dx
	ret

eoi:	mov $0x80b, %ecx
	xor %eax, %eax
	xor %edx, %edx
	wrmsr
	ret

# is_first sets the zero flag on the boot processor.
is_first:
	mov $0x802, %ecx
	rdmsr
	test %eax, %eax
	ret

on_ping:
	push %rax
	push %rcx
	push %rdx
	push %rsi
	call is_first
	jz 16f
	call check
	incq PINGS2
	call stamp
	mov $VECTOR_PING, %eax
	call send1
	jmp 17f
16:	incq PINGS1
17:	call eoi
	jmp leave

on_timer:
	push %rax
	push %rcx
	push %rdx
	push %rsi
	call is_first
	jz 18f
	incq TIMERS2
	mov $VECTOR_PING, %eax
	call send1
	jmp 19f
18:	incq TIMERS1
19:	call eoi
	jmp leave

on_alarm:
	push %rax
	push %rcx
	push %rdx
	push %rsi
	call alarm
	call eoi
leave:	pop %rsi
	pop %rdx
	pop %rcx
	pop %rax
	iretq

on_nmi:
	push %rax
	push %rcx
	push %rdx
	push %rsi
	incq NMIS
	mov $VECTOR_PING, %eax
	call send1
	jmp leave

unexpected:
	mov $'?', %al
	call print
on_off:
off:	mov $0x600, %edx
	mov $0x34, %al		# sleep type 5, enable
	out %al, %dx
	cli
20:	hlt
	jmp 20b

	.code16
trampoline:
	cli
	xor %eax, %eax
	mov %ax, %ds
	lgdtl TRAMPOLINE + (small_pointer - trampoline)
	mov %cr0, %eax
	or $1, %eax
	mov %eax, %cr0
	ljmpl $0x08, $trampoline32
small_pointer:
	.word 31
	.long gdt
trampoline_end:

	.code32
trampoline32:
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov $STACK2, %esp
	jmp to_long

	.balign 8
gdt:	.quad 0
	.quad 0x00cf9b000000ffff	# 0x08: 32-bit code
	.quad 0x00cf93000000ffff	# 0x10: data
	.quad 0x00af9b000000ffff	# 0x18: 64-bit code
gdt_pointer:
	.word 31
	.long gdt
idt_pointer:
	.word 4095
	.quad IDT
