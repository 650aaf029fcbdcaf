// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

//go:build !purego

#include "textflag.h"

// SHA-512 of four messages at once. A 256-bit register has one 64-bit word of
// each; a to h are Y0 to Y7 and change places from round to round. The last 16
// words of the message schedule are a ring of 16*32 bytes at W.

#define STATE AX
#define CHUNKS BX
#define CONSTANTS CX
#define OFFSET DX
#define W DI
#define PHASE SI
#define LANE0 R8
#define LANE1 R9
#define LANE2 R10
#define LANE3 R11
#define K R12

// Reverses the bytes of each 64-bit word.
DATA swap4<>+0x00(SB)/8, $0x0001020304050607
DATA swap4<>+0x08(SB)/8, $0x08090a0b0c0d0e0f
DATA swap4<>+0x10(SB)/8, $0x0001020304050607
DATA swap4<>+0x18(SB)/8, $0x08090a0b0c0d0e0f
GLOBL swap4<>(SB), RODATA|NOPTR, $32

// Rotates each 64-bit word right by 8 bits.
DATA ror8x4<>+0x00(SB)/8, $0x0007060504030201
DATA ror8x4<>+0x08(SB)/8, $0x080f0e0d0c0b0a09
DATA ror8x4<>+0x10(SB)/8, $0x0007060504030201
DATA ror8x4<>+0x18(SB)/8, $0x080f0e0d0c0b0a09
GLOBL ror8x4<>(SB), RODATA|NOPTR, $32

// LOAD reads words i to i+3 of the chunk from every lane, swaps their bytes
// and turns the four rows of a lane's words into four rows of a word's lanes.
#define LOAD(i) \
	VMOVDQU     (i*8)(LANE0)(OFFSET*1), Y0 \
	VMOVDQU     (i*8)(LANE1)(OFFSET*1), Y1 \
	VMOVDQU     (i*8)(LANE2)(OFFSET*1), Y2 \
	VMOVDQU     (i*8)(LANE3)(OFFSET*1), Y3 \
	VPSHUFB     Y15, Y0, Y0                \
	VPSHUFB     Y15, Y1, Y1                \
	VPSHUFB     Y15, Y2, Y2                \
	VPSHUFB     Y15, Y3, Y3                \
	VPUNPCKLQDQ Y1, Y0, Y4                 \
	VPUNPCKHQDQ Y1, Y0, Y5                 \
	VPUNPCKLQDQ Y3, Y2, Y6                 \
	VPUNPCKHQDQ Y3, Y2, Y7                 \
	VPERM2I128  $0x20, Y6, Y4, Y8          \
	VPERM2I128  $0x20, Y7, Y5, Y9          \
	VPERM2I128  $0x31, Y6, Y4, Y10         \
	VPERM2I128  $0x31, Y7, Y5, Y11         \
	VMOVDQA     Y8, (i*32+0)(W)            \
	VMOVDQA     Y9, (i*32+32)(W)           \
	VMOVDQA     Y10, (i*32+64)(W)          \
	VMOVDQA     Y11, (i*32+96)(W)

// ROUND is round i of 16. ab becomes a^b; bc is b^c, which is a^b of the round
// before. Maj(a,b,c) = b ^ ((a^b) & (b^c)), Ch(e,f,g) = g ^ (e & (f^g)).
#define ROUND(a, b, c, d, e, f, g, h, i, ab, bc) \
	VPBROADCASTQ (i*8)(K), Y8        \
	VPADDQ       (i*32)(W), Y8, Y8   \
	VPXOR        f, g, Y9            \
	VPSRLQ       $14, e, Y10         \
	VPSLLQ       $50, e, Y11         \
	VPADDQ       Y8, h, h            \
	VPAND        e, Y9, Y9           \
	VPXOR        Y10, Y11, Y10       \
	VPSRLQ       $18, e, Y12         \
	VPSLLQ       $46, e, Y13         \
	VPXOR        g, Y9, Y9           \
	VPXOR        Y12, Y13, Y12       \
	VPSRLQ       $41, e, Y8          \
	VPSLLQ       $23, e, Y11         \
	VPADDQ       Y9, h, h            \
	VPXOR        Y10, Y12, Y10       \
	VPXOR        Y8, Y11, Y8         \
	VPXOR        Y8, Y10, Y10        \
	VPADDQ       Y10, h, h           \
	VPADDQ       h, d, d             \
	VPXOR        a, b, ab            \
	VPSRLQ       $28, a, Y10         \
	VPSLLQ       $36, a, Y11         \
	VPAND        ab, bc, bc          \
	VPXOR        Y10, Y11, Y10       \
	VPSRLQ       $34, a, Y12         \
	VPSLLQ       $30, a, Y13         \
	VPXOR        b, bc, bc           \
	VPXOR        Y12, Y13, Y12       \
	VPSRLQ       $39, a, Y8          \
	VPSLLQ       $25, a, Y11         \
	VPADDQ       bc, h, h            \
	VPXOR        Y10, Y12, Y10       \
	VPXOR        Y8, Y11, Y8         \
	VPXOR        Y8, Y10, Y10        \
	VPADDQ       Y10, h, h

// SCHEDULE replaces word i of the ring by the one 16 rounds later, given
// i+1, i+9 and i+14 modulo 16.
#define SCHEDULE(i, i1, i9, i14) \
	VMOVDQA (i1*32)(W), Y8           \
	VMOVDQA (i14*32)(W), Y9          \
	VMOVDQA (i*32)(W), Y10           \
	VPADDQ  (i9*32)(W), Y10, Y10     \
	VPSRLQ  $1, Y8, Y11              \
	VPSLLQ  $63, Y8, Y12             \
	VPSHUFB ror8x4<>(SB), Y8, Y13    \
	VPSRLQ  $7, Y8, Y8               \
	VPXOR   Y11, Y12, Y11            \
	VPXOR   Y8, Y13, Y8              \
	VPXOR   Y8, Y11, Y8              \
	VPADDQ  Y8, Y10, Y10             \
	VPSRLQ  $19, Y9, Y11             \
	VPSLLQ  $45, Y9, Y12             \
	VPSRLQ  $61, Y9, Y13             \
	VPSLLQ  $3, Y9, Y8               \
	VPSRLQ  $6, Y9, Y9               \
	VPXOR   Y11, Y12, Y11            \
	VPXOR   Y8, Y13, Y8              \
	VPXOR   Y11, Y9, Y9              \
	VPXOR   Y8, Y9, Y9               \
	VPADDQ  Y9, Y10, Y10             \
	VMOVDQA Y10, (i*32)(W)

// func sha512x4(state *[64]uint64, lanes *[8]*byte, chunks int, constants *[80]uint64)
TEXT ·sha512x4(SB), 0, $544-32
	MOVQ state+0(FP), STATE
	MOVQ lanes+8(FP), SI
	MOVQ chunks+16(FP), CHUNKS
	MOVQ constants+24(FP), CONSTANTS
	MOVQ 0(SI), LANE0
	MOVQ 8(SI), LANE1
	MOVQ 16(SI), LANE2
	MOVQ 24(SI), LANE3
	LEAQ 31(SP), W
	ANDQ $~31, W
	XORQ OFFSET, OFFSET

chunk:
	VMOVDQU swap4<>(SB), Y15
	LOAD(0)
	LOAD(4)
	LOAD(8)
	LOAD(12)
	ADDQ $128, OFFSET

	VMOVDQU 0(STATE), Y0
	VMOVDQU 32(STATE), Y1
	VMOVDQU 64(STATE), Y2
	VMOVDQU 96(STATE), Y3
	VMOVDQU 128(STATE), Y4
	VMOVDQU 160(STATE), Y5
	VMOVDQU 192(STATE), Y6
	VMOVDQU 224(STATE), Y7
	VPXOR   Y1, Y2, Y15
	MOVQ    CONSTANTS, K
	MOVQ    $4, PHASE

phase:
	ROUND(Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7, 0, Y14, Y15)
	SCHEDULE(0, 1, 9, 14)
	ROUND(Y7, Y0, Y1, Y2, Y3, Y4, Y5, Y6, 1, Y15, Y14)
	SCHEDULE(1, 2, 10, 15)
	ROUND(Y6, Y7, Y0, Y1, Y2, Y3, Y4, Y5, 2, Y14, Y15)
	SCHEDULE(2, 3, 11, 0)
	ROUND(Y5, Y6, Y7, Y0, Y1, Y2, Y3, Y4, 3, Y15, Y14)
	SCHEDULE(3, 4, 12, 1)
	ROUND(Y4, Y5, Y6, Y7, Y0, Y1, Y2, Y3, 4, Y14, Y15)
	SCHEDULE(4, 5, 13, 2)
	ROUND(Y3, Y4, Y5, Y6, Y7, Y0, Y1, Y2, 5, Y15, Y14)
	SCHEDULE(5, 6, 14, 3)
	ROUND(Y2, Y3, Y4, Y5, Y6, Y7, Y0, Y1, 6, Y14, Y15)
	SCHEDULE(6, 7, 15, 4)
	ROUND(Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y0, 7, Y15, Y14)
	SCHEDULE(7, 8, 0, 5)
	ROUND(Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7, 8, Y14, Y15)
	SCHEDULE(8, 9, 1, 6)
	ROUND(Y7, Y0, Y1, Y2, Y3, Y4, Y5, Y6, 9, Y15, Y14)
	SCHEDULE(9, 10, 2, 7)
	ROUND(Y6, Y7, Y0, Y1, Y2, Y3, Y4, Y5, 10, Y14, Y15)
	SCHEDULE(10, 11, 3, 8)
	ROUND(Y5, Y6, Y7, Y0, Y1, Y2, Y3, Y4, 11, Y15, Y14)
	SCHEDULE(11, 12, 4, 9)
	ROUND(Y4, Y5, Y6, Y7, Y0, Y1, Y2, Y3, 12, Y14, Y15)
	SCHEDULE(12, 13, 5, 10)
	ROUND(Y3, Y4, Y5, Y6, Y7, Y0, Y1, Y2, 13, Y15, Y14)
	SCHEDULE(13, 14, 6, 11)
	ROUND(Y2, Y3, Y4, Y5, Y6, Y7, Y0, Y1, 14, Y14, Y15)
	SCHEDULE(14, 15, 7, 12)
	ROUND(Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y0, 15, Y15, Y14)
	SCHEDULE(15, 0, 8, 13)
	ADDQ $128, K
	DECQ PHASE
	JNZ  phase

	ROUND(Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7, 0, Y14, Y15)
	ROUND(Y7, Y0, Y1, Y2, Y3, Y4, Y5, Y6, 1, Y15, Y14)
	ROUND(Y6, Y7, Y0, Y1, Y2, Y3, Y4, Y5, 2, Y14, Y15)
	ROUND(Y5, Y6, Y7, Y0, Y1, Y2, Y3, Y4, 3, Y15, Y14)
	ROUND(Y4, Y5, Y6, Y7, Y0, Y1, Y2, Y3, 4, Y14, Y15)
	ROUND(Y3, Y4, Y5, Y6, Y7, Y0, Y1, Y2, 5, Y15, Y14)
	ROUND(Y2, Y3, Y4, Y5, Y6, Y7, Y0, Y1, 6, Y14, Y15)
	ROUND(Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y0, 7, Y15, Y14)
	ROUND(Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7, 8, Y14, Y15)
	ROUND(Y7, Y0, Y1, Y2, Y3, Y4, Y5, Y6, 9, Y15, Y14)
	ROUND(Y6, Y7, Y0, Y1, Y2, Y3, Y4, Y5, 10, Y14, Y15)
	ROUND(Y5, Y6, Y7, Y0, Y1, Y2, Y3, Y4, 11, Y15, Y14)
	ROUND(Y4, Y5, Y6, Y7, Y0, Y1, Y2, Y3, 12, Y14, Y15)
	ROUND(Y3, Y4, Y5, Y6, Y7, Y0, Y1, Y2, 13, Y15, Y14)
	ROUND(Y2, Y3, Y4, Y5, Y6, Y7, Y0, Y1, 14, Y14, Y15)
	ROUND(Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y0, 15, Y15, Y14)

	VPADDQ  0(STATE), Y0, Y0
	VPADDQ  32(STATE), Y1, Y1
	VPADDQ  64(STATE), Y2, Y2
	VPADDQ  96(STATE), Y3, Y3
	VPADDQ  128(STATE), Y4, Y4
	VPADDQ  160(STATE), Y5, Y5
	VPADDQ  192(STATE), Y6, Y6
	VPADDQ  224(STATE), Y7, Y7
	VMOVDQU Y0, 0(STATE)
	VMOVDQU Y1, 32(STATE)
	VMOVDQU Y2, 64(STATE)
	VMOVDQU Y3, 96(STATE)
	VMOVDQU Y4, 128(STATE)
	VMOVDQU Y5, 160(STATE)
	VMOVDQU Y6, 192(STATE)
	VMOVDQU Y7, 224(STATE)

	DECQ CHUNKS
	JNZ  chunk

	VZEROUPPER
	RET
