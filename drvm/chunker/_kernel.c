/* The native kernel of the chunker: _kernel.pyi says what its functions do.

   BLAKE3 as J. O'Connor, J.-P. Aumasson, S. Neves and Z. Wilcox-O'Hearn define it ("BLAKE3: one
   function, fast everywhere", 2020, section 2), for inputs of exactly one block only. Only
   compilers' vector types are used, no machine's own functions: each width is the same code,
   compiled for a wider machine. Compilers without __builtin_shufflevector (gcc before 12), and
   big-endian machines, get no native kernel. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "BLAKE3 counts in little-endian words, and so does this kernel"
#endif

#define BLOCK_BYTES 4096
#define CHUNK_BYTES 1024
#define PIECE_BYTES 64
#define ID_BYTES 16
#define KEY_BYTES 32
#define KEY_WORD_BYTES 8
#define MAX_LANES 16

/* What scan says of a block. */
enum { ZERO = 0, SAME = 1, NEW = 2 };

/* BLAKE3's flags, table 3 of the paper, and its first constants, those of SHA-256. */
enum { START = 1, END = 2, PARENT = 4, ROOT = 8, KEYED = 16 };
#define IV0 0x6A09E667u
#define IV1 0xBB67AE85u
#define IV2 0x3C6EF372u
#define IV3 0xA54FF53Au

#define ROTATE(x, n) ((x) >> (n) | (x) << (32 - (n)))

#define G(a, b, c, d, x, y) \
    a += m[x]; a += b; d = ROTATE_16(d ^ a); c += d; b = ROTATE(b ^ c, 12); \
    a += m[y]; a += b; d = ROTATE_8(d ^ a); c += d; b = ROTATE(b ^ c, 7);

#define ROUND(s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14, s15) \
    G(a0, b0, c0, d0, s0, s1) G(a1, b1, c1, d1, s2, s3) \
    G(a2, b2, c2, d2, s4, s5) G(a3, b3, c3, d3, s6, s7) \
    G(a0, b1, c2, d3, s8, s9) G(a1, b2, c3, d0, s10, s11) \
    G(a2, b3, c0, d1, s12, s13) G(a3, b0, c1, d2, s14, s15)

/* Each row is the one before, permuted as table 2 of the paper says. */
#define ALL_ROUNDS \
    ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15) \
    ROUND(2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8) \
    ROUND(3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1) \
    ROUND(10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6) \
    ROUND(12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4) \
    ROUND(9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7) \
    ROUND(11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13)

#define SHUFFLE __builtin_shufflevector

#define LANES 4
#define TARGET
#define NAME(x) x##_4
#include "_lanes.h"

#if defined(__x86_64__)
#define LANES 8
#define TARGET __attribute__((target("avx2")))
#define NAME(x) x##_8
#include "_lanes.h"

#define LANES 16
#define TARGET __attribute__((target("avx512f")))
#define NAME(x) x##_16
#include "_lanes.h"
#endif

typedef void hash_function(
    uint8_t (*ids)[ID_BYTES], const uint8_t *const *blocks, int count, const uint32_t key[8]);

/* NULL where there is no such width, or not on this CPU. */
static hash_function *hash_of(int lanes)
{
    switch (lanes) {
    case 4:
        return hash_4;
#if defined(__x86_64__)
    case 8:
        return __builtin_cpu_supports("avx2") ? hash_8 : NULL;
    case 16:
        return __builtin_cpu_supports("avx512f") ? hash_16 : NULL;
#endif
    default:
        return NULL;
    }
}

static int widest(void)
{
    int lanes = MAX_LANES;
    while (hash_of(lanes) == NULL)
        lanes /= 2;
    return lanes;
}

static int is_zero(const uint8_t *block)
{
    for (size_t at = 0; at < BLOCK_BYTES; at += PIECE_BYTES) {
        uint64_t w[PIECE_BYTES / 8];
        memcpy(w, block + at, sizeof w);
        if (w[0] | w[1] | w[2] | w[3] | w[4] | w[5] | w[6] | w[7])
            return 0;
    }
    return 1;
}

/* known may be NULL. Returns how many blocks are NEW. Blocks that are not zero wait until they
   fill a vector. */
static size_t scan_blocks(const uint8_t *data, size_t blocks, const uint8_t *key_bytes,
    const uint8_t *known, uint8_t *ids, uint8_t *state, int lanes)
{
    hash_function *hash = hash_of(lanes);
    const uint8_t *waiting[MAX_LANES];
    size_t numbers[MAX_LANES], new_blocks = 0;
    uint8_t hashed[MAX_LANES][ID_BYTES];
    uint32_t key[8];
    int count = 0;
    memcpy(key, key_bytes, sizeof key);
    for (size_t i = 0; i < blocks; i++) {
        const uint8_t *block = data + i * BLOCK_BYTES;
        if (is_zero(block)) {
            memset(ids + i * ID_BYTES, 0, ID_BYTES);
            state[i] = ZERO;
        } else {
            waiting[count] = block;
            numbers[count++] = i;
        }
        if (count == 0 || (count < lanes && i + 1 < blocks))
            continue;
        hash(hashed, waiting, count, key);
        while (count > 0) {
            size_t at = numbers[--count] * ID_BYTES;
            int same = known != NULL && memcmp(hashed[count], known + at, ID_BYTES) == 0;
            memcpy(ids + at, hashed[count], ID_BYTES);
            state[numbers[count]] = same ? SAME : NEW;
            new_blocks += !same;
        }
    }
    return new_blocks;
}

static PyObject *checked_scan(Py_buffer *data, Py_buffer *key, Py_buffer *known, Py_buffer *ids,
    Py_buffer *state, int lanes)
{
    Py_ssize_t blocks = data->len / BLOCK_BYTES;
    size_t new_blocks;
    if (data->len % BLOCK_BYTES)
        return PyErr_Format(PyExc_ValueError, "%zd bytes are not whole blocks", data->len);
    if (key->len != KEY_BYTES)
        return PyErr_Format(PyExc_ValueError, "a key has %d bytes", KEY_BYTES);
    if ((known->obj != NULL && known->len != blocks * ID_BYTES) || ids->len != blocks * ID_BYTES)
        return PyErr_Format(PyExc_ValueError, "%zd blocks need as many ids", blocks);
    if (state->len != blocks)
        return PyErr_Format(PyExc_ValueError, "%zd blocks need as many states", blocks);
    if (hash_of(lanes) == NULL)
        return PyErr_Format(PyExc_ValueError, "no %d lanes here", lanes);
    Py_BEGIN_ALLOW_THREADS
    new_blocks = scan_blocks(
        data->buf, (size_t)blocks, key->buf, known->buf, ids->buf, state->buf, lanes);
    Py_END_ALLOW_THREADS
    return PyLong_FromSize_t(new_blocks);
}

static PyObject *scan(PyObject *module, PyObject *args)
{
    Py_buffer data, key, known, ids, state;
    int lanes = widest();
    PyObject *result;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*y*z*w*w*|i", &data, &key, &known, &ids, &state, &lanes))
        return NULL;
    result = checked_scan(&data, &key, &known, &ids, &state, lanes);
    PyBuffer_Release(&data);
    PyBuffer_Release(&key);
    PyBuffer_Release(&known);
    PyBuffer_Release(&ids);
    PyBuffer_Release(&state);
    return result;
}

/* A key that is looked for. Its place is in [low, high]: keys below low are smaller, the key at
   high is not, if keys ascend. guess: where it should be, were all keys spread evenly. */
struct query {
    const uint8_t *row;
    uint64_t wanted;
    size_t low, high, guess;
    double density;
};

#define TOGETHER 16 /* queries that wait for memory side by side */
#define GUESSES 3   /* each takes the error to about its square root; the rest is galloping */

static uint64_t key_at(const uint8_t *row, size_t place)
{
    uint64_t key;
    memcpy(&key, row + place * sizeof key, sizeof key);
    return key;
}

/* The guess, so many keys up or down from a place; kept within the bounds. */
static void guess(struct query *q, size_t from, uint64_t distance, int up)
{
    double steps = (double)distance * q->density;
    size_t most = up ? q->high - from : from - q->low;
    size_t far = steps < (double)most ? (size_t)steps : most;
    q->guess = up ? from + far : from - far;
    __builtin_prefetch(q->row + q->guess * sizeof(uint64_t));
}

/* Halves what is left: at is below high. Returns whether the key at this place is too small. */
static int narrow(struct query *q, size_t at)
{
    if (key_at(q->row, at) < q->wanted) {
        q->low = at + 1;
        return 1;
    }
    q->high = at;
    return 0;
}

static void begin(struct query *q, size_t keys)
{
    uint64_t first = key_at(q->row, 0), last = key_at(q->row, keys - 1);
    q->low = q->high = q->wanted > first ? keys - 1 : 0;
    if (q->wanted <= first || q->wanted > last)
        return; /* the first one, or none */
    q->low = 1;
    q->density = (double)(keys - 1) / (double)(last - first);
    guess(q, 0, q->wanted - first, 1);
}

static void improve(struct query *q)
{
    size_t at = q->guess;
    uint64_t key;
    if (q->low >= q->high)
        return;
    at = at < q->low ? q->low : at < q->high ? at : q->high - 1;
    key = key_at(q->row, at);
    if (narrow(q, at))
        guess(q, q->low, q->wanted - key, 1);
    else
        guess(q, q->high, key - q->wanted, 0);
}

/* The place, or -1. */
static int64_t finish(struct query *q)
{
    size_t at = q->guess, step = 4;
    if (q->low < q->high) {
        int up;
        at = at < q->low ? q->low : at < q->high ? at : q->high - 1;
        up = narrow(q, at);
        while (q->high - q->low > step && narrow(q, up ? q->low + step : q->high - step) == up)
            step *= 2;
    }
    while (q->low < q->high)
        narrow(q, q->low + (q->high - q->low) / 2);
    return key_at(q->row, q->low) == q->wanted ? (int64_t)q->low : -1;
}

/* table: so many rows of row_bytes with so many keys each, neither zero. row_of may be NULL: then
   all is in the first row. Returns the number of hits, -1 where a row is not there. */
static Py_ssize_t probe_rows(const uint8_t *table, size_t rows, size_t row_bytes, size_t keys,
    const uint8_t *row_of, const uint8_t *wanted, uint8_t *places, size_t count)
{
    struct query query[TOGETHER];
    Py_ssize_t hits = 0;
    for (size_t done = 0; done < count; done += TOGETHER) {
        size_t here = count - done < TOGETHER ? count - done : TOGETHER;
        for (size_t i = 0; i < here; i++) {
            uint64_t row = row_of != NULL ? key_at(row_of, done + i) : 0;
            if (row >= rows)
                return -1;
            query[i].row = table + row * row_bytes;
            query[i].wanted = key_at(wanted, done + i);
            begin(&query[i], keys);
        }
        for (int round = 0; round < GUESSES; round++)
            for (size_t i = 0; i < here; i++)
                improve(&query[i]);
        for (size_t i = 0; i < here; i++) {
            int64_t place = finish(&query[i]);
            memcpy(places + (done + i) * sizeof place, &place, sizeof place);
            hits += place >= 0;
        }
    }
    return hits;
}

static PyObject *checked_probe(Py_buffer *table, Py_ssize_t row_bytes, Py_ssize_t row_keys,
    Py_buffer *row_of, Py_buffer *wanted, Py_buffer *places)
{
    Py_ssize_t count = wanted->len / KEY_WORD_BYTES, hits;
    if (row_bytes < 0 || row_keys < 0 || row_keys > row_bytes / KEY_WORD_BYTES
        || (row_bytes ? table->len % row_bytes : table->len))
        return PyErr_Format(PyExc_ValueError, "the table is not rows of %zd bytes with %zd keys",
            row_bytes, row_keys);
    if (wanted->len % KEY_WORD_BYTES || places->len != wanted->len
        || (row_of->obj != NULL && row_of->len != wanted->len))
        return PyErr_Format(PyExc_ValueError, "%zd keys need as many rows and places", count);
    if (row_keys == 0 || table->len == 0) { /* no row has a first key to look at */
        if (row_of->obj != NULL && count > 0)
            return PyErr_Format(PyExc_ValueError, "a row is not in the table");
        memset(places->buf, -1, (size_t)places->len);
        return PyLong_FromLong(0);
    }
    Py_BEGIN_ALLOW_THREADS
    hits = probe_rows(table->buf, (size_t)(table->len / row_bytes), (size_t)row_bytes,
        (size_t)row_keys, row_of->buf, wanted->buf, places->buf, (size_t)count);
    Py_END_ALLOW_THREADS
    if (hits < 0)
        return PyErr_Format(PyExc_ValueError, "a row is not in the table");
    return PyLong_FromSsize_t(hits);
}

static PyObject *probe(PyObject *module, PyObject *args)
{
    Py_buffer table, row_of, wanted, places;
    Py_ssize_t row_bytes, row_keys;
    PyObject *result;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*nnz*y*w*", &table, &row_bytes, &row_keys, &row_of, &wanted,
            &places))
        return NULL;
    result = checked_probe(&table, row_bytes, row_keys, &row_of, &wanted, &places);
    PyBuffer_Release(&table);
    PyBuffer_Release(&row_of);
    PyBuffer_Release(&wanted);
    PyBuffer_Release(&places);
    return result;
}

static int fill_module(PyObject *module)
{
    return PyModule_AddIntConstant(module, "LANES", widest());
}

static PyMethodDef methods[] = {
    {"scan", scan, METH_VARARGS, NULL},
    {"probe", probe, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{Py_mod_exec, fill_module}, {0, NULL}};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_kernel", .m_methods = methods, .m_slots = slots};

PyMODINIT_FUNC PyInit__kernel(void)
{
    return PyModuleDef_Init(&definition);
}
