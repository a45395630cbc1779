# The entry of the kernel in keeper.c: 32-bit code without paging becomes 64-bit code with the first GiB, that of the devices, and a little
# above 4 GiB mapped.

#define PML4  0x10000
#define PDPT  0x11000
#define PD    0x12000
#define PDD   0x13000
#define PDH   0x14000
#define STACK 0x30000

	.section .text.start,"ax"
	.code32
	.globl _start
_start:
	cli
	lgdt gdt_pointer
	ljmp $0x08, $1f
1:	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov $STACK, %esp
	movl $(PDPT + 3), PML4
	movl $(PD + 3), PDPT
	movl $(PDD + 3), PDPT + 24
	movl $(PDH + 3), PDPT + 32
	mov $PD, %edi
	mov $0x83, %eax
	mov $512, %ecx
2:	mov %eax, (%edi)
	movl $0, 4(%edi)
	add $0x200000, %eax
	add $8, %edi
	loop 2b
	mov $PDD, %edi
	mov $0xc0000083, %eax
	mov $512, %ecx
3:	mov %eax, (%edi)
	movl $0, 4(%edi)
	add $0x200000, %eax
	add $8, %edi
	loop 3b
	movl $0x83, PDH		# the first 2 MiB above 4 GiB
	movl $1, PDH + 4
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
	ljmp $0x18, $4f
	.code64
4:	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	call kernel_main

	.globl on_timer
on_timer:
	push %rax
	push %rcx
	push %rdx
	incl ticks
	mov $0x80b, %ecx
	xor %eax, %eax
	xor %edx, %edx
	wrmsr
	pop %rdx
	pop %rcx
	pop %rax
	iretq

	.globl on_anything
on_anything:
	mov $0x3f8, %edx
	mov $'?', %al
	out %al, %dx
	mov $0x600, %edx
	mov $0x34, %al
	out %al, %dx
5:	cli
	hlt
	jmp 5b

	.balign 8
gdt:	.quad 0
	.quad 0x00cf9b000000ffff	# 0x08: 32-bit code
	.quad 0x00cf93000000ffff	# 0x10: data
	.quad 0x00af9b000000ffff	# 0x18: 64-bit code
gdt_pointer:
	.word 31
	.long gdt
