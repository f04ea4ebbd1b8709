/* Keyed BLAKE3 of 4 KiB blocks side by side, in vectors of LANES words.

   Included by _kernel.c once for each width, with LANES (4, 8 or 16), TARGET (the function
   attributes that the width needs) and NAME(x) defined; takes them back at its end.

   A block is 4 chunks of 1 KiB, a chunk 16 compressions of 64 bytes. Each lane works on one chunk,
   so that a vector of chunks holds LANES / 4 blocks. The chaining values of two vectors of chunks
   deinterleave into the messages of one vector of parents, and those of two vectors of parents
   into one vector of roots. So LANES blocks are 4 + 2 + 1 vectors without an idle lane, and fewer
   blocks take fewer vectors of chunks. */

typedef uint32_t NAME(vector) __attribute__((vector_size(4 * LANES)));
typedef uint64_t NAME(pairs) __attribute__((vector_size(4 * LANES)));
typedef uint8_t NAME(bytes) __attribute__((vector_size(4 * LANES)));
#define VECTOR NAME(vector)
#define PAIRS NAME(pairs)
#define INLINE TARGET static inline __attribute__((always_inline))

/* LOW_ and HIGH_ interleave within each 16 bytes, which x86 does in one instruction;
   EVEN_ and ODD_ take every second word, or every second 16 bytes, of both vectors. */
#if LANES == 4
#define LOW_WORDS(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define HIGH_WORDS(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#define LOW_PAIRS(a, b) SHUFFLE((PAIRS)(a), (PAIRS)(b), 0, 2)
#define HIGH_PAIRS(a, b) SHUFFLE((PAIRS)(a), (PAIRS)(b), 1, 3)
#define EVEN_WORDS(a, b) SHUFFLE(a, b, 0, 2, 4, 6)
#define ODD_WORDS(a, b) SHUFFLE(a, b, 1, 3, 5, 7)
#elif LANES == 8
#define LOW_WORDS(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define HIGH_WORDS(a, b) SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define LOW_PAIRS(a, b) SHUFFLE((PAIRS)(a), (PAIRS)(b), 0, 4, 2, 6)
#define HIGH_PAIRS(a, b) SHUFFLE((PAIRS)(a), (PAIRS)(b), 1, 5, 3, 7)
#define EVEN_WORDS(a, b) SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14)
#define ODD_WORDS(a, b) SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15)
#define EVEN_QUADS(a, b) SHUFFLE((PAIRS)(a), (PAIRS)(b), 0, 1, 4, 5)
#define ODD_QUADS(a, b) SHUFFLE((PAIRS)(a), (PAIRS)(b), 2, 3, 6, 7)
#else
#define LOW_WORDS(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define HIGH_WORDS(a, b) SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define LOW_PAIRS(a, b) SHUFFLE((PAIRS)(a), (PAIRS)(b), 0, 8, 2, 10, 4, 12, 6, 14)
#define HIGH_PAIRS(a, b) SHUFFLE((PAIRS)(a), (PAIRS)(b), 1, 9, 3, 11, 5, 13, 7, 15)
#define EVEN_WORDS(a, b) SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define ODD_WORDS(a, b) SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
#define EVEN_QUADS(a, b) SHUFFLE((PAIRS)(a), (PAIRS)(b), 0, 1, 4, 5, 8, 9, 12, 13)
#define ODD_QUADS(a, b) SHUFFLE((PAIRS)(a), (PAIRS)(b), 2, 3, 6, 7, 10, 11, 14, 15)
#endif

#if LANES == 8 /* AVX2 has no rotation, but moves bytes in one instruction where shifts take three */
#define MOVE_BYTES(x, ...) ((VECTOR)SHUFFLE((NAME(bytes))(x), (NAME(bytes))(x), __VA_ARGS__))
#define ROTATE_16(x) MOVE_BYTES(x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13, \
    18, 19, 16, 17, 22, 23, 20, 21, 26, 27, 24, 25, 30, 31, 28, 29)
#define ROTATE_8(x) MOVE_BYTES(x, 1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12, \
    17, 18, 19, 16, 21, 22, 23, 20, 25, 26, 27, 24, 29, 30, 31, 28)
#else
#define ROTATE_16(x) ROTATE(x, 16)
#define ROTATE_8(x) ROTATE(x, 8)
#endif

/* The compression function. h: the chaining values, replaced; m: the message. Each vector holds
   one word of all lanes. */
INLINE void NAME(compress)(VECTOR h[8], const VECTOR m[16], VECTOR counter, uint32_t flags)
{
    const VECTOR none = {0};
    VECTOR a0 = h[0], a1 = h[1], a2 = h[2], a3 = h[3];
    VECTOR b0 = h[4], b1 = h[5], b2 = h[6], b3 = h[7];
    VECTOR c0 = none + IV0, c1 = none + IV1, c2 = none + IV2, c3 = none + IV3;
    VECTOR d0 = counter, d1 = none, d2 = none + PIECE_BYTES, d3 = none + flags;
    ALL_ROUNDS
    h[0] = a0 ^ c0, h[1] = a1 ^ c1, h[2] = a2 ^ c2, h[3] = a3 ^ c3;
    h[4] = b0 ^ d0, h[5] = b1 ^ d1, h[6] = b2 ^ d2, h[7] = b3 ^ d3;
}

/* m[w] = word w of the piece at at[lane], for all lanes: a transposition in steps of 4 x 4 words
   and then of 16 bytes. */
INLINE void NAME(load)(VECTOR m[16], const uint8_t *const at[LANES], size_t offset)
{
    VECTOR row[LANES];
#pragma GCC unroll 4
    for (size_t word = 0; word < 16; word += LANES) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            memcpy(&row[i], at[i] + offset + 4 * word, sizeof row[i]);
#pragma GCC unroll 4
        for (int i = 0; i < LANES; i += 4) {
            VECTOR s = LOW_WORDS(row[i], row[i + 1]), t = LOW_WORDS(row[i + 2], row[i + 3]);
            VECTOR u = HIGH_WORDS(row[i], row[i + 1]), v = HIGH_WORDS(row[i + 2], row[i + 3]);
            row[i] = (VECTOR)LOW_PAIRS(s, t), row[i + 1] = (VECTOR)HIGH_PAIRS(s, t);
            row[i + 2] = (VECTOR)LOW_PAIRS(u, v), row[i + 3] = (VECTOR)HIGH_PAIRS(u, v);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
#if LANES == 4
            m[word + i] = row[i];
#elif LANES == 8
            m[word + i] = (VECTOR)EVEN_QUADS(row[i], row[i + 4]);
            m[word + i + 4] = (VECTOR)ODD_QUADS(row[i], row[i + 4]);
#else
            PAIRS s = EVEN_QUADS(row[i], row[i + 4]), t = EVEN_QUADS(row[i + 8], row[i + 12]);
            PAIRS u = ODD_QUADS(row[i], row[i + 4]), v = ODD_QUADS(row[i + 8], row[i + 12]);
            m[i] = (VECTOR)EVEN_QUADS(s, t), m[i + 4] = (VECTOR)EVEN_QUADS(u, v);
            m[i + 8] = (VECTOR)ODD_QUADS(s, t), m[i + 12] = (VECTOR)ODD_QUADS(u, v);
#endif
        }
    }
}

/* h = the chaining values of the chunks at at[lane], which is chunk lane % 4 of its block. */
TARGET static void
NAME(chunks)(VECTOR h[8], const uint8_t *const at[LANES], const uint32_t key[8])
{
    VECTOR counter = {0}, m[16];
    for (int i = 0; i < LANES; i++)
        counter[i] = i % 4;
    for (int i = 0; i < 8; i++)
        h[i] = (VECTOR){0} + key[i];
    for (size_t offset = 0; offset < CHUNK_BYTES; offset += PIECE_BYTES) {
        int last = offset == CHUNK_BYTES - PIECE_BYTES;
        NAME(load)(m, at, offset);
        /* What most likely comes next; so many streams are too much for the CPU's own guesses. */
        for (int i = 0; i < LANES; i++)
            __builtin_prefetch(at[i] + offset + LANES * CHUNK_BYTES);
        NAME(compress)(h, m, counter, KEYED | (offset ? 0 : START) | (last ? END : 0));
    }
}

/* h = the chaining values of the parents of (left, right), pair by pair. */
TARGET static void
NAME(parents)(VECTOR h[8], VECTOR left[8], VECTOR right[8], const uint32_t key[8], uint32_t flags)
{
    VECTOR m[16];
    for (int i = 0; i < 8; i++) {
        m[i] = EVEN_WORDS(left[i], right[i]);
        m[i + 8] = ODD_WORDS(left[i], right[i]);
        h[i] = (VECTOR){0} + key[i];
    }
    NAME(compress)(h, m, (VECTOR){0}, KEYED | PARENT | flags);
}

/* ids[i] = the id of the block at blocks[i], for each of the count blocks; 0 < count <= LANES. */
TARGET static void NAME(hash)(
    uint8_t (*ids)[ID_BYTES], const uint8_t *const *blocks, int count, const uint32_t key[8])
{
    VECTOR chunk[4][8], parent[2][8], root[8];
    memset(chunk, 0, sizeof chunk);
    for (int i = 0; i < 4 && i * LANES / 4 < count; i++) {
        const uint8_t *at[LANES];
        for (int lane = 0; lane < LANES; lane++) {
            int block = (i * LANES + lane) / 4;
            at[lane] = blocks[block < count ? block : count - 1] + lane % 4 * CHUNK_BYTES;
        }
        NAME(chunks)(chunk[i], at, key);
    }
    NAME(parents)(parent[0], chunk[0], chunk[1], key, 0);
    NAME(parents)(parent[1], chunk[2], chunk[3], key, 0);
    NAME(parents)(root, parent[0], parent[1], key, ROOT);
    for (int i = 0; i < count; i++) {
        uint32_t words[ID_BYTES / 4] = {root[0][i], root[1][i], root[2][i], root[3][i]};
        memcpy(ids[i], words, ID_BYTES);
    }
}

#undef LANES
#undef TARGET
#undef NAME
#undef VECTOR
#undef PAIRS
#undef INLINE
#undef LOW_WORDS
#undef HIGH_WORDS
#undef LOW_PAIRS
#undef HIGH_PAIRS
#undef EVEN_WORDS
#undef ODD_WORDS
#undef EVEN_QUADS
#undef ODD_QUADS
#undef MOVE_BYTES
#undef ROTATE_16
#undef ROTATE_8
