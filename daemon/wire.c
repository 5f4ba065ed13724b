/* SPDX-License-Identifier: MIT */
#include "daemon/wire.h"

#include <math.h>
#include <msgpack.h>
#include <string.h>

#include "dsp/bytes.h"
#include "dsp/text.h"

enum { DEPTH_MAX = 16 };

static const struct {
    enum wire_flag flag;
    const char *name;
} flag_names[] = {
    {WIRE_GAP, "gap"}, {WIRE_BYPASS, "bypass"}, {WIRE_WARMUP, "warmup"}, {WIRE_DEGRADED, "degraded"}, {WIRE_END, "end"},
};
enum { FLAGS = sizeof flag_names / sizeof *flag_names };

/* ---- Writing: msgpack-c's packer over a fixed buffer. ---- */

static int append(void *data, const char *bytes, size_t n)
{
    struct wire_bytes *out = data;
    if (out->full || out->room - out->n < n) {
        out->full = true;
        return -1;
    }
    memcpy(out->at + out->n, bytes, n);
    out->n += n;
    return 0;
}

static msgpack_packer packer(struct wire_bytes *bytes)
{
    msgpack_packer pk;
    msgpack_packer_init(&pk, bytes, append);
    return pk;
}

void wire_put_map(struct wire_bytes *bytes, size_t n)
{
    msgpack_packer pk = packer(bytes);
    msgpack_pack_map(&pk, n);
}

void wire_put_array(struct wire_bytes *bytes, size_t n)
{
    msgpack_packer pk = packer(bytes);
    msgpack_pack_array(&pk, n);
}

void wire_put_text(struct wire_bytes *bytes, const char *text)
{
    msgpack_packer pk = packer(bytes);
    msgpack_pack_str(&pk, strlen(text));
    msgpack_pack_str_body(&pk, text, strlen(text));
}

void wire_put_pair(struct wire_bytes *bytes, const char *key, const char *text)
{
    wire_put_text(bytes, key);
    wire_put_text(bytes, text);
}

void wire_put_uint(struct wire_bytes *bytes, uint64_t value)
{
    msgpack_packer pk = packer(bytes);
    msgpack_pack_uint64(&pk, value);
}

static void put_int(struct wire_bytes *bytes, int64_t value)
{
    msgpack_packer pk = packer(bytes);
    msgpack_pack_int64(&pk, value);
}

void wire_put_number(struct wire_bytes *bytes, double value)
{
    msgpack_packer pk = packer(bytes);
    msgpack_pack_double(&pk, value);
}

void wire_put_bool(struct wire_bytes *bytes, bool value)
{
    msgpack_packer pk = packer(bytes);
    if (value) {
        msgpack_pack_true(&pk);
    } else {
        msgpack_pack_false(&pk);
    }
}

static void put_bin(struct wire_bytes *bytes, const uint8_t *value, size_t n)
{
    msgpack_packer pk = packer(bytes);
    msgpack_pack_bin(&pk, n);
    msgpack_pack_bin_body(&pk, value, n);
}

/* ---- Reading: a cursor that cannot leave its bytes. msgpack-c's unpacker takes memory for whatever length a hostile
 * header claims, so reading is done here. ---- */

struct cursor {
    const uint8_t *at, *end;
};

enum kind { KIND_BAD, KIND_NIL, KIND_BOOL, KIND_UINT, KIND_INT, KIND_NUMBER, KIND_TEXT, KIND_BIN, KIND_ARRAY, KIND_MAP, KIND_EXT };

struct value {
    enum kind kind;
    uint64_t n;           /* BOOL, UINT: the value; TEXT, BIN, EXT: bytes; ARRAY, MAP: entries */
    int64_t i;            /* INT: the value, below zero */
    double number;        /* NUMBER */
    const uint8_t *bytes; /* TEXT, BIN, EXT */
};

static bool read_big_endian(struct cursor *in, unsigned n, uint64_t *value)
{
    if ((size_t)(in->end - in->at) < n) {
        return false;
    }
    *value = bytes_get_big(in->at, (int)n);
    in->at += n;
    return true;
}

/* Text, bytes and extensions: `n` bytes that must be there. */
static struct value span(struct cursor *in, enum kind kind, uint64_t n)
{
    if ((uint64_t)(in->end - in->at) < n) {
        return (struct value){0};
    }
    struct value value = {.kind = kind, .n = n, .bytes = in->at};
    in->at += n;
    return value;
}

/* An extension's type is a byte more. */
static struct value read_sized(struct cursor *in, enum kind kind, unsigned width)
{
    uint64_t n;
    return read_big_endian(in, width, &n) ? span(in, kind, n + (kind == KIND_EXT)) : (struct value){0};
}

static struct value read_counted(struct cursor *in, enum kind kind, unsigned width)
{
    uint64_t n;
    return read_big_endian(in, width, &n) ? (struct value){.kind = kind, .n = n} : (struct value){0};
}

static struct value read_float(struct cursor *in, unsigned width)
{
    uint64_t bits;
    if (!read_big_endian(in, width, &bits)) {
        return (struct value){0};
    }
    struct value value = {.kind = KIND_NUMBER};
    if (width == 4) {
        uint32_t narrow = (uint32_t)bits;
        float number;
        memcpy(&number, &narrow, sizeof number);
        value.number = (double)number;
    } else {
        memcpy(&value.number, &bits, sizeof bits);
    }
    return value;
}

static struct value read_int(struct cursor *in, unsigned width)
{
    uint64_t bits;
    if (!read_big_endian(in, width, &bits)) {
        return (struct value){0};
    }
    unsigned shift = 64 - 8 * width;
    int64_t i = (int64_t)(bits << shift) >> shift;
    return i < 0 ? (struct value){.kind = KIND_INT, .i = i} : (struct value){.kind = KIND_UINT, .n = (uint64_t)i};
}

/* What the byte at the beginning of a value says. (MessagePack's specification) */
static const struct head {
    uint8_t first, last;
    enum kind kind;
    enum { HERE, BELOW, TEXT_HERE, FIXED, SIZED, COUNTED, INTEGER, FLOAT } how;
    uint8_t number; /* of ..HERE the bits that count; else how many bytes follow the first of these, twice as many the next */
} heads[] = {
    {0x00, 0x7f, KIND_UINT, HERE, 0x7f},  {0x80, 0x8f, KIND_MAP, HERE, 0x0f},
    {0x90, 0x9f, KIND_ARRAY, HERE, 0x0f}, {0xa0, 0xbf, KIND_TEXT, TEXT_HERE, 0x1f},
    {0xc0, 0xc0, KIND_NIL, HERE, 0},      {0xc2, 0xc3, KIND_BOOL, HERE, 1},
    {0xc4, 0xc6, KIND_BIN, SIZED, 1},     {0xc7, 0xc9, KIND_EXT, SIZED, 1},
    {0xca, 0xcb, KIND_NUMBER, FLOAT, 4},  {0xcc, 0xcf, KIND_UINT, COUNTED, 1},
    {0xd0, 0xd3, KIND_INT, INTEGER, 1},   {0xd4, 0xd8, KIND_EXT, FIXED, 1},
    {0xd9, 0xdb, KIND_TEXT, SIZED, 1},    {0xdc, 0xdd, KIND_ARRAY, COUNTED, 2},
    {0xde, 0xdf, KIND_MAP, COUNTED, 2},   {0xe0, 0xff, KIND_INT, BELOW, 0},
};

static const struct head *find_head(uint8_t byte)
{
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        if (byte >= heads[i].first && byte <= heads[i].last) {
            return &heads[i];
        }
    }
    return NULL;
}

/* One value's head, with its bytes if it has any; the entries of an array or a map follow. */
static struct value read_value(struct cursor *in)
{
    uint8_t byte = in->at < in->end ? *in->at++ : 0xc1; /* which means nothing */
    const struct head *head = find_head(byte);
    if (!head) {
        return (struct value){0};
    }
    unsigned here = byte & head->number, width = (unsigned)head->number << (byte - head->first) % 8; /* no row of these has more */
    switch (head->how) {
    case HERE:
        return (struct value){.kind = head->kind, .n = here};
    case BELOW:
        return (struct value){.kind = head->kind, .i = (int8_t)byte};
    case TEXT_HERE:
        return span(in, head->kind, here);
    case FIXED:
        return span(in, head->kind, width + 1);
    case SIZED:
        return read_sized(in, head->kind, width);
    case COUNTED:
        return read_counted(in, head->kind, width);
    case INTEGER:
        return read_int(in, width);
    case FLOAT:
        return read_float(in, width);
    }
    return (struct value){0};
}

static bool skip(struct cursor *in, int depth)
{
    struct value value = read_value(in);
    if (value.kind != KIND_ARRAY && value.kind != KIND_MAP) {
        return value.kind != KIND_BAD;
    }
    uint64_t entries = value.kind == KIND_MAP ? 2 * value.n : value.n;
    for (uint64_t i = 0; i < entries; i++) { /* ends with the bytes: an entry takes at least one */
        if (depth == 0 || !skip(in, depth - 1)) {
            return false;
        }
    }
    return true;
}

/* ---- The header's keys, once for both ways, in canonical order. ---- */

enum field_type { FIELD_INT, FIELD_U32, FIELD_U64, FIELD_I64, FIELD_TEXT, FIELD_BOOT, FIELD_SHAPE, FIELD_LOST, FIELD_FLAGS };

struct field {
    const char *key;
    enum field_type type;
    size_t offset, size;
};

#define FIELD(key, type, member) {key, type, offsetof(struct wire_header, member), sizeof((struct wire_header *)0)->member}
static const struct field fields[] = {
    FIELD("v", FIELD_INT, version), FIELD("seq", FIELD_U64, seq),   FIELD("boot", FIELD_BOOT, boot),
    FIELD("s0", FIELD_U64, s0),     FIELD("n", FIELD_U32, n),       FIELD("sr", FIELD_U32, sr),
    FIELD("ch", FIELD_U32, ch),     FIELD("dt", FIELD_TEXT, dt),    FIELD("shp", FIELD_SHAPE, shp),
    FIELD("tm", FIELD_I64, tm),     FIELD("tw", FIELD_I64, tw),     FIELD("te", FIELD_U32, te),
    FIELD("clk", FIELD_TEXT, clk),  FIELD("cap", FIELD_I64, cap),   FIELD("enq", FIELD_I64, enq),
    FIELD("inf", FIELD_I64, inf),   FIELD("pub", FIELD_I64, pub),   FIELD("mdl", FIELD_TEXT, mdl),
    FIELD("st", FIELD_TEXT, st),    FIELD("lost", FIELD_LOST, lost), FIELD("flags", FIELD_FLAGS, flags),
};
enum { FIELDS = sizeof fields / sizeof *fields };

static void put_shape(struct wire_bytes *out, const struct wire_header *header)
{
    wire_put_array(out, header->n_shp);
    for (uint32_t i = 0; i < header->n_shp; i++) {
        wire_put_uint(out, header->shp[i]);
    }
}

static void put_lost(struct wire_bytes *out, const struct wire_lost *lost)
{
    wire_put_map(out, 4);
    wire_put_text(out, "n");
    wire_put_uint(out, lost->n);
    wire_put_text(out, "from");
    wire_put_uint(out, lost->from);
    wire_put_text(out, "to");
    wire_put_uint(out, lost->to);
    wire_put_text(out, "why");
    wire_put_text(out, lost->why);
}

static void put_flags(struct wire_bytes *out, unsigned flags)
{
    size_t n = 0;
    for (int i = 0; i < FLAGS; i++) {
        n += (flags & flag_names[i].flag) != 0;
    }
    wire_put_array(out, n);
    for (int i = 0; i < FLAGS; i++) {
        if (flags & flag_names[i].flag) {
            wire_put_text(out, flag_names[i].name);
        }
    }
}

static void put_field(struct wire_bytes *out, const struct wire_header *header, const struct field *field)
{
    const void *at = (const char *)header + field->offset;
    wire_put_text(out, field->key);
    switch (field->type) {
    case FIELD_INT:
        put_int(out, *(const int *)at);
        return;
    case FIELD_U32:
        wire_put_uint(out, *(const uint32_t *)at);
        return;
    case FIELD_U64:
        wire_put_uint(out, *(const uint64_t *)at);
        return;
    case FIELD_I64:
        put_int(out, *(const int64_t *)at);
        return;
    case FIELD_TEXT:
        wire_put_text(out, at);
        return;
    case FIELD_BOOT:
        put_bin(out, at, field->size);
        return;
    case FIELD_SHAPE:
        put_shape(out, header);
        return;
    case FIELD_LOST:
        put_lost(out, at);
        return;
    case FIELD_FLAGS:
        put_flags(out, *(const unsigned *)at);
        return;
    }
}

size_t wire_encode(const struct wire_header *header, uint8_t *bytes, size_t room)
{
    struct wire_bytes out = {.at = bytes, .room = room};
    wire_put_map(&out, FIELDS);
    for (int i = 0; i < FIELDS; i++) {
        put_field(&out, header, &fields[i]);
    }
    return out.full ? 0 : out.n;
}

static bool is_text(struct value value, const char *text)
{
    return value.kind == KIND_TEXT && value.n == strlen(text) && memcmp(value.bytes, text, value.n) == 0;
}

static bool get_uint(struct cursor *in, uint64_t max, uint64_t *to)
{
    struct value value = read_value(in);
    *to = value.n;
    return value.kind == KIND_UINT && value.n <= max;
}

static bool get_int(struct cursor *in, int64_t *to)
{
    struct value value = read_value(in);
    *to = value.kind == KIND_INT ? value.i : (int64_t)value.n;
    return value.kind == KIND_INT || (value.kind == KIND_UINT && value.n <= INT64_MAX);
}

static bool get_text(struct cursor *in, char *to, size_t size)
{
    struct value value = read_value(in);
    if (value.kind != KIND_TEXT) {
        return false;
    }
    for (size_t step; value.n > 0; value.n -= step, value.bytes += step) {
        step = text_printable(value.bytes, (size_t)value.n);
        if (step == 0) {
            return false;
        }
        if (step >= size) { /* cut, but not within a character */
            break;
        }
        memcpy(to, value.bytes, step);
        to += step;
        size -= step;
    }
    *to = '\0';
    return true;
}

static bool get_boot(struct cursor *in, uint8_t *boot, size_t size)
{
    struct value value = read_value(in);
    if (value.kind != KIND_BIN || value.n != size) {
        return false;
    }
    memcpy(boot, value.bytes, size);
    return true;
}

static bool get_shape(struct cursor *in, struct wire_header *header)
{
    struct value array = read_value(in);
    if (array.kind != KIND_ARRAY || array.n > 4) {
        return false;
    }
    header->n_shp = (uint32_t)array.n;
    for (uint32_t i = 0; i < header->n_shp; i++) {
        uint64_t size;
        if (!get_uint(in, UINT32_MAX, &size)) {
            return false;
        }
        header->shp[i] = (uint32_t)size;
    }
    return true;
}

static bool get_lost(struct cursor *in, struct wire_lost *lost)
{
    struct value map = read_value(in);
    bool ok = map.kind == KIND_MAP;
    for (uint64_t i = 0; ok && i < map.n; i++) {
        struct value key = read_value(in);
        ok = is_text(key, "n")      ? get_uint(in, UINT64_MAX, &lost->n)
             : is_text(key, "from") ? get_uint(in, UINT64_MAX, &lost->from)
             : is_text(key, "to")   ? get_uint(in, UINT64_MAX, &lost->to)
             : is_text(key, "why")  ? get_text(in, lost->why, sizeof lost->why)
                                    : key.kind == KIND_TEXT && skip(in, DEPTH_MAX);
    }
    return ok;
}

static bool get_flags(struct cursor *in, unsigned *flags)
{
    struct value array = read_value(in);
    bool ok = array.kind == KIND_ARRAY;
    for (uint64_t i = 0; ok && i < array.n; i++) {
        struct value name = read_value(in);
        ok = name.kind == KIND_TEXT;
        for (int k = 0; ok && k < FLAGS; k++) {
            *flags |= is_text(name, flag_names[k].name) ? (unsigned)flag_names[k].flag : 0;
        }
    }
    return ok;
}

static bool get_field(struct cursor *in, struct wire_header *header, const struct field *field)
{
    void *at = (char *)header + field->offset;
    uint64_t n = 0;
    bool ok = false;
    switch (field->type) {
    case FIELD_INT:
        ok = get_uint(in, INT32_MAX, &n);
        *(int *)at = (int)n;
        return ok;
    case FIELD_U32:
        ok = get_uint(in, UINT32_MAX, &n);
        *(uint32_t *)at = (uint32_t)n;
        return ok;
    case FIELD_U64:
        return get_uint(in, UINT64_MAX, at);
    case FIELD_I64:
        return get_int(in, at);
    case FIELD_TEXT:
        return get_text(in, at, field->size);
    case FIELD_BOOT:
        return get_boot(in, at, field->size);
    case FIELD_SHAPE:
        return get_shape(in, header);
    case FIELD_LOST:
        return get_lost(in, at);
    case FIELD_FLAGS:
        return get_flags(in, at);
    }
    return ok;
}

static const struct field *find_field(struct value key)
{
    for (int i = 0; i < FIELDS; i++) {
        if (is_text(key, fields[i].key)) {
            return &fields[i];
        }
    }
    return NULL;
}

bool wire_decode(struct wire_header *header, const uint8_t *bytes, size_t size)
{
    *header = (struct wire_header){0};
    struct cursor in = {bytes, bytes + size};
    struct value map = read_value(&in);
    bool ok = map.kind == KIND_MAP;
    for (uint64_t i = 0; ok && i < map.n; i++) {
        struct value key = read_value(&in);
        const struct field *field = find_field(key);
        ok = key.kind == KIND_TEXT && (field ? get_field(&in, header, field) : skip(&in, DEPTH_MAX));
    }
    return ok && in.at == in.end && header->version == WIRE_VERSION;
}

size_t wire_topic(char topic[WIRE_TOPIC_MAX], const char *kind, const char *node, const char *pipeline, int channel,
                  const char *model)
{
    int n = channel < 0 ? snprintf(topic, WIRE_TOPIC_MAX, "%s/%s/", kind, node)
                        : snprintf(topic, WIRE_TOPIC_MAX, "%s/%s/%s/%d/%s/", kind, node, pipeline, channel, model);
    return n < WIRE_TOPIC_MAX ? (size_t)n : WIRE_TOPIC_MAX - 1;
}

/* ---- JSON ---- */

void wire_json_text(FILE *file, const void *text, size_t size)
{
    fputc('"', file);
    for (size_t i = 0; i < size;) {
        const unsigned char *at = (const unsigned char *)text + i;
        size_t n = text_character(at, size - i);
        if (n == 0) {
            fputs("\\ufffd", file);
            n = 1;
        } else if (*at == '"' || *at == '\\') {
            fprintf(file, "\\%c", *at);
        } else if (text_control(at, n) > 0) {
            fprintf(file, "\\u%04x", at[n - 1]);
        } else {
            fwrite(at, 1, n, file);
        }
        i += n;
    }
    fputc('"', file);
}

static void print_hex(FILE *file, struct value value)
{
    fputc('"', file);
    for (uint64_t i = 0; i < value.n; i++) {
        fprintf(file, "%02x", value.bytes[i]);
    }
    fputc('"', file);
}

static bool print_value(FILE *file, struct cursor *in, int depth);

static bool print_entries(FILE *file, struct cursor *in, struct value value, int depth)
{
    bool map = value.kind == KIND_MAP;
    fputc(map ? '{' : '[', file);
    for (uint64_t i = 0; i < value.n; i++) {
        if (i > 0) {
            fputc(',', file);
        }
        if (map) {
            struct value key = read_value(in);
            if (key.kind != KIND_TEXT) {
                return false;
            }
            wire_json_text(file, key.bytes, key.n);
            fputc(':', file);
        }
        if (!print_value(file, in, depth)) {
            return false;
        }
    }
    fputc(map ? '}' : ']', file);
    return true;
}

static bool print_value(FILE *file, struct cursor *in, int depth)
{
    struct value value = read_value(in);
    switch (value.kind) {
    case KIND_BAD:
        return false;
    case KIND_NIL:
        fputs("null", file);
        break;
    case KIND_BOOL:
        fputs(value.n ? "true" : "false", file);
        break;
    case KIND_UINT:
        fprintf(file, "%llu", (unsigned long long)value.n);
        break;
    case KIND_INT:
        fprintf(file, "%lld", (long long)value.i);
        break;
    case KIND_NUMBER:
        fprintf(file, isfinite(value.number) ? "%.15g" : "null", value.number);
        break;
    case KIND_TEXT:
        wire_json_text(file, value.bytes, value.n);
        break;
    case KIND_BIN:
    case KIND_EXT:
        print_hex(file, value);
        break;
    case KIND_ARRAY:
    case KIND_MAP:
        return depth > 0 && print_entries(file, in, value, depth - 1);
    }
    return true;
}

bool wire_json(FILE *file, const uint8_t *bytes, size_t size)
{
    struct cursor in = {bytes, bytes + size};
    return print_value(file, &in, DEPTH_MAX) && in.at == in.end;
}
