// SPDX-FileCopyrightText: The cfs-pull authors
// SPDX-License-Identifier: Apache-2.0

//go:build !purego

#include "textflag.h"

// SHA-512 of eight messages at once. A 512-bit register has one 64-bit word of
// each; a to h are Z0 to Z7 and change places from round to round. The last 16
// words of the message schedule are a ring in Z16 to Z31.

#define STATE AX
#define CHUNKS BX
#define CONSTANTS CX
#define OFFSET DX
#define K DI
#define PHASE SI
#define LANE0 R8
#define LANE1 R9
#define LANE2 R10
#define LANE3 R11
#define LANE4 R12
#define LANE5 R13
#define LANE6 R14
#define LANE7 R15

// Truth tables of VPTERNLOGQ, with the destination as its first input.
#define XOR3 $0x96
#define CHOOSE $0xca   // first ? second : third
#define MAJORITY $0xe8

// Reverses the bytes of each 64-bit word.
DATA swap8<>+0x00(SB)/8, $0x0001020304050607
DATA swap8<>+0x08(SB)/8, $0x08090a0b0c0d0e0f
GLOBL swap8<>(SB), RODATA|NOPTR, $16

// LOAD reads words i to i+7 of the chunk from every lane, swaps their bytes
// and turns the eight rows of a lane's words into eight rows of a word's lanes.
#define LOAD(i, w0, w1, w2, w3, w4, w5, w6, w7) \
	VMOVDQU64   (i*8)(LANE0)(OFFSET*1), Z0 \
	VMOVDQU64   (i*8)(LANE1)(OFFSET*1), Z1 \
	VMOVDQU64   (i*8)(LANE2)(OFFSET*1), Z2 \
	VMOVDQU64   (i*8)(LANE3)(OFFSET*1), Z3 \
	VMOVDQU64   (i*8)(LANE4)(OFFSET*1), Z4 \
	VMOVDQU64   (i*8)(LANE5)(OFFSET*1), Z5 \
	VMOVDQU64   (i*8)(LANE6)(OFFSET*1), Z6 \
	VMOVDQU64   (i*8)(LANE7)(OFFSET*1), Z7 \
	VPSHUFB     Z15, Z0, Z0                \
	VPSHUFB     Z15, Z1, Z1                \
	VPSHUFB     Z15, Z2, Z2                \
	VPSHUFB     Z15, Z3, Z3                \
	VPSHUFB     Z15, Z4, Z4                \
	VPSHUFB     Z15, Z5, Z5                \
	VPSHUFB     Z15, Z6, Z6                \
	VPSHUFB     Z15, Z7, Z7                \
	VPUNPCKLQDQ Z1, Z0, Z8                 \
	VPUNPCKHQDQ Z1, Z0, Z9                 \
	VPUNPCKLQDQ Z3, Z2, Z10                \
	VPUNPCKHQDQ Z3, Z2, Z11                \
	VPUNPCKLQDQ Z5, Z4, Z12                \
	VPUNPCKHQDQ Z5, Z4, Z13                \
	VPUNPCKLQDQ Z7, Z6, Z14                \
	VPUNPCKHQDQ Z7, Z6, Z0                 \
	VSHUFI64X2  $0x88, Z10, Z8, Z1         \
	VSHUFI64X2  $0xdd, Z10, Z8, Z2         \
	VSHUFI64X2  $0x88, Z14, Z12, Z3        \
	VSHUFI64X2  $0xdd, Z14, Z12, Z4        \
	VSHUFI64X2  $0x88, Z3, Z1, w0          \
	VSHUFI64X2  $0xdd, Z3, Z1, w4          \
	VSHUFI64X2  $0x88, Z4, Z2, w2          \
	VSHUFI64X2  $0xdd, Z4, Z2, w6          \
	VSHUFI64X2  $0x88, Z11, Z9, Z1         \
	VSHUFI64X2  $0xdd, Z11, Z9, Z2         \
	VSHUFI64X2  $0x88, Z0, Z13, Z3         \
	VSHUFI64X2  $0xdd, Z0, Z13, Z4         \
	VSHUFI64X2  $0x88, Z3, Z1, w1          \
	VSHUFI64X2  $0xdd, Z3, Z1, w5          \
	VSHUFI64X2  $0x88, Z4, Z2, w3          \
	VSHUFI64X2  $0xdd, Z4, Z2, w7

// ROUND is round i of 16, with word w of the schedule.
#define ROUND(a, b, c, d, e, f, g, h, i, w) \
	VPADDQ.BCST (i*8)(K), w, Z8       \
	VMOVDQA64   e, Z9                 \
	VPRORQ      $14, e, Z10           \
	VPRORQ      $18, e, Z11           \
	VPRORQ      $41, e, Z12           \
	VPADDQ      Z8, h, h              \
	VPTERNLOGQ  CHOOSE, g, f, Z9      \
	VPTERNLOGQ  XOR3, Z10, Z11, Z12   \
	VPADDQ      Z9, h, h              \
	VMOVDQA64   a, Z13                \
	VPRORQ      $28, a, Z14           \
	VPADDQ      Z12, h, h             \
	VPRORQ      $34, a, Z8            \
	VPRORQ      $39, a, Z9            \
	VPADDQ      h, d, d               \
	VPTERNLOGQ  MAJORITY, c, b, Z13   \
	VPTERNLOGQ  XOR3, Z14, Z8, Z9     \
	VPADDQ      Z13, h, h             \
	VPADDQ      Z9, h, h

// SCHEDULE replaces word w by the one 16 rounds later, given the words 1, 9
// and 14 rounds later than w.
#define SCHEDULE(w, w1, w9, w14) \
	VPRORQ     $1, w1, Z8            \
	VPRORQ     $8, w1, Z9            \
	VPSRLQ     $7, w1, Z10           \
	VPADDQ     w9, w, w              \
	VPRORQ     $19, w14, Z11         \
	VPRORQ     $61, w14, Z12         \
	VPSRLQ     $6, w14, Z13          \
	VPTERNLOGQ XOR3, Z8, Z9, Z10     \
	VPTERNLOGQ XOR3, Z11, Z12, Z13   \
	VPADDQ     Z10, w, w             \
	VPADDQ     Z13, w, w

// func sha512x8(state *[64]uint64, lanes *[8]*byte, chunks int, constants *[80]uint64)
TEXT ·sha512x8(SB), NOSPLIT, $0-32
	MOVQ state+0(FP), STATE
	MOVQ lanes+8(FP), SI
	MOVQ chunks+16(FP), CHUNKS
	MOVQ constants+24(FP), CONSTANTS
	MOVQ 0(SI), LANE0
	MOVQ 8(SI), LANE1
	MOVQ 16(SI), LANE2
	MOVQ 24(SI), LANE3
	MOVQ 32(SI), LANE4
	MOVQ 40(SI), LANE5
	MOVQ 48(SI), LANE6
	MOVQ 56(SI), LANE7
	XORQ OFFSET, OFFSET
	VBROADCASTI32X4 swap8<>(SB), Z15

chunk:
	LOAD(0, Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z23)
	LOAD(8, Z24, Z25, Z26, Z27, Z28, Z29, Z30, Z31)
	ADDQ $128, OFFSET

	VMOVDQU64 0(STATE), Z0
	VMOVDQU64 64(STATE), Z1
	VMOVDQU64 128(STATE), Z2
	VMOVDQU64 192(STATE), Z3
	VMOVDQU64 256(STATE), Z4
	VMOVDQU64 320(STATE), Z5
	VMOVDQU64 384(STATE), Z6
	VMOVDQU64 448(STATE), Z7
	MOVQ      CONSTANTS, K
	MOVQ      $4, PHASE

phase:
	ROUND(Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, 0, Z16)
	SCHEDULE(Z16, Z17, Z25, Z30)
	ROUND(Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6, 1, Z17)
	SCHEDULE(Z17, Z18, Z26, Z31)
	ROUND(Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5, 2, Z18)
	SCHEDULE(Z18, Z19, Z27, Z16)
	ROUND(Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4, 3, Z19)
	SCHEDULE(Z19, Z20, Z28, Z17)
	ROUND(Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3, 4, Z20)
	SCHEDULE(Z20, Z21, Z29, Z18)
	ROUND(Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2, 5, Z21)
	SCHEDULE(Z21, Z22, Z30, Z19)
	ROUND(Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1, 6, Z22)
	SCHEDULE(Z22, Z23, Z31, Z20)
	ROUND(Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0, 7, Z23)
	SCHEDULE(Z23, Z24, Z16, Z21)
	ROUND(Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, 8, Z24)
	SCHEDULE(Z24, Z25, Z17, Z22)
	ROUND(Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6, 9, Z25)
	SCHEDULE(Z25, Z26, Z18, Z23)
	ROUND(Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5, 10, Z26)
	SCHEDULE(Z26, Z27, Z19, Z24)
	ROUND(Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4, 11, Z27)
	SCHEDULE(Z27, Z28, Z20, Z25)
	ROUND(Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3, 12, Z28)
	SCHEDULE(Z28, Z29, Z21, Z26)
	ROUND(Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2, 13, Z29)
	SCHEDULE(Z29, Z30, Z22, Z27)
	ROUND(Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1, 14, Z30)
	SCHEDULE(Z30, Z31, Z23, Z28)
	ROUND(Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0, 15, Z31)
	SCHEDULE(Z31, Z16, Z24, Z29)
	ADDQ $128, K
	DECQ PHASE
	JNZ  phase

	ROUND(Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, 0, Z16)
	ROUND(Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6, 1, Z17)
	ROUND(Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5, 2, Z18)
	ROUND(Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4, 3, Z19)
	ROUND(Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3, 4, Z20)
	ROUND(Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2, 5, Z21)
	ROUND(Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1, 6, Z22)
	ROUND(Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0, 7, Z23)
	ROUND(Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, 8, Z24)
	ROUND(Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6, 9, Z25)
	ROUND(Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5, 10, Z26)
	ROUND(Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4, 11, Z27)
	ROUND(Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3, 12, Z28)
	ROUND(Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2, 13, Z29)
	ROUND(Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1, 14, Z30)
	ROUND(Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0, 15, Z31)

	VPADDQ    0(STATE), Z0, Z0
	VPADDQ    64(STATE), Z1, Z1
	VPADDQ    128(STATE), Z2, Z2
	VPADDQ    192(STATE), Z3, Z3
	VPADDQ    256(STATE), Z4, Z4
	VPADDQ    320(STATE), Z5, Z5
	VPADDQ    384(STATE), Z6, Z6
	VPADDQ    448(STATE), Z7, Z7
	VMOVDQU64 Z0, 0(STATE)
	VMOVDQU64 Z1, 64(STATE)
	VMOVDQU64 Z2, 128(STATE)
	VMOVDQU64 Z3, 192(STATE)
	VMOVDQU64 Z4, 256(STATE)
	VMOVDQU64 Z5, 320(STATE)
	VMOVDQU64 Z6, 384(STATE)
	VMOVDQU64 Z7, 448(STATE)

	DECQ CHUNKS
	JNZ  chunk

	VZEROUPPER
	RET
