/* SPDX-License-Identifier: MIT */
#include "daemon/stream_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/refuse.h"

/* ---- Set-up. ---- */

static uint64_t gcd(uint64_t a, uint64_t b)
{
    return b == 0 ? a : gcd(b, a % b);
}

/* rm / g samples of the model last as long as rs / g of the feed; enough of them to be whole hops. */
static void find_unit(struct stream *stream)
{
    uint64_t in = (uint64_t)stream->rate, out = (uint64_t)stream->model->rate, hop = (uint64_t)stream->model->hop;
    uint64_t common = gcd(in, out);
    uint64_t times = hop / gcd(hop, out / common);
    stream->unit_in = in / common * times;
    stream->unit_out = out / common * times;
}

/* Room for the way in and the way out. */
static int stream_allocate(struct stream *stream, const struct stream_setup *setup, struct ssm_error *err)
{
    const struct ssm_info *model = stream->model;
    stream->staging = stream->own_staging = calloc((size_t)model->inputs * STREAM_HOPS, sizeof(float));
    stream->staged_arrived = stream->own_arrived;
    stream->blend = stream->scores ? NULL : blend_create(model->delay, model->rate, setup->share, setup->bypass);
    stream->resampler = stream->rows ? NULL : resampler_create(stream->rate, model->rate, RESAMPLER_LIVE);
    stream->raw = stream->rows ? NULL : calloc(RAW, sizeof(float));
    bool ok = ladder_init(&stream->ladder, setup->engine, setup->smaller, STREAM_HOPS) == 0;
    ok = ok && stream->staging && (stream->blend || stream->scores);
    ok = ok && (stream->rows || (stream->resampler && stream->raw));
    return ok ? 0 : refuse(err, 71, "out of memory for a stream, or the source's rate is too far from the model's");
}

static int stream_init(struct stream *stream, const struct stream_setup *setup, struct ssm_error *err)
{
    const struct ssm_info *model = ssm_describe(setup->engine);
    *stream = (struct stream){.feed = setup->feed, .rows = setup->rows, .sinks = setup->sinks, .n_sinks = setup->n_sinks,
                              .channel = setup->channel, .rate = setup->rate, .patient = setup->patient,
                              .counters = setup->counters, .model = model, .hop = model->hop, .time = NAN,
                              .priority = setup->priority, .elapsed = 1,
                              .left = -(int64_t)model->delay, .scores = strcmp(model->task, "tag") == 0,
                              .bypass = setup->bypass, .deadline = setup->deadline};
    find_unit(stream);
    clock_init(&stream->clock, stream->rate);
    return stream_allocate(stream, setup, err);
}

struct stream *stream_create(const struct stream_setup *setup, struct ssm_error *err)
{
    struct stream *stream = malloc(sizeof *stream);
    if (!stream) {
        refuse_memory(err);
    } else if (stream_init(stream, setup, err) < 0) {
        stream_destroy(stream);
        return NULL;
    }
    return stream;
}

void stream_destroy(struct stream *stream)
{
    if (!stream) {
        return;
    }
    for (int i = 0; i < LADDER_SIDES; i++) {
        stream_close(stream, stream->ladder.sides[i].engine);
    }
    ladder_finish(&stream->ladder);
    resampler_destroy(stream->resampler);
    blend_destroy(stream->blend);
    free(stream->raw);
    free(stream->own_staging);
    free(stream);
}

/* With what is in it, to where its model's engine has room, or back. */
static void move_staging(struct stream *stream)
{
    float *to = main_of(stream)->in ? main_of(stream)->in : stream->own_staging;
    if (to != stream->staging) {
        memcpy(to, stream->staging, (size_t)stream->model->inputs * STREAM_HOPS * sizeof(float));
        stream->staging = to;
    }
}

int stream_open(struct stream *stream, const struct ssm_engine *engine, struct ssm_error *err)
{
    return ladder_open(&stream->ladder, engine, err);
}

void stream_close(struct stream *stream, const struct ssm_engine *engine)
{
    ladder_close(&stream->ladder, engine);
    move_staging(stream);
}

void stream_house(struct stream *stream, const struct ssm_engine *engine, const struct rooms *rooms)
{
    ladder_house(&stream->ladder, engine, rooms);
    move_staging(stream);
}

bool stream_is_of(const struct stream *stream, const struct ssm_engine *engine)
{
    return stream->ladder.sides[0].engine == engine;
}

void stream_find_device(struct stream *stream)
{
    ladder_find_devices(&stream->ladder);
}

/* ---- A turn. ---- */

/* Sound, by more than two steps take. It goes on as fast as its sinks let it. */
static bool is_behind(const struct stream *stream)
{
    return stream->feed && way_in_backlog(stream) > 2 * hops_time(stream, STREAM_HOPS);
}

/* Hops that all sinks worth waiting for take, up to `most`. */
static size_t room_in_sinks(const struct stream *stream, size_t most)
{
    size_t room = most;
    for (int i = 0; i < stream->n_sinks; i++) {
        if (stream->sinks[i]->ops->paced && !stream->patient) {
            continue;
        }
        size_t hops = stream->sinks[i]->ops->room(stream->sinks[i], stream->channel) / (size_t)stream->model->hop;
        room = hops < room ? hops : room;
    }
    return room;
}

/* There is no time for the stream, and it is in the bypass already: nothing that fades is cut off. */
static bool is_dropping(struct stream *stream)
{
    bool drops = ladder_rung(&stream->ladder) == RUNG_DROP && !stream->resume.pending;
    if (drops && (stream->rows ? rows_ended(stream->rows) : feed_ended(stream->feed))) { /* the end is to be heard */
        while (ladder_raise(&stream->ladder)) {
        }
        drops = false;
    }
    return drops;
}

/* Stage what waits, where this engine steps on it, or none does and it is the stream's own. Gives hops. */
static int begin(struct stream *stream, const struct ssm_engine *engine)
{
    if (stream->halts) {
        return 0;
    }
    bool rests = !ladder_plan(&stream->ladder);
    if (rests ? !stream_is_of(stream, engine) : !ladder_runs(&stream->ladder, engine)) {
        return 0;
    }
    if (rests && is_dropping(stream)) {
        way_in_drop(stream);
        return 0;
    }
    size_t room = room_in_sinks(stream, STREAM_HOPS);
    if (room < STREAM_HOPS && !stream->patient && (stream->rows || feed_share(stream->feed) > 0.5)) {
        room = STREAM_HOPS; /* something will be lost, and here it's counted where */
    }
    stream->waits = room == 0;
    return room == 0 ? 0 : (int)way_in_fill(stream, room);
}

enum stream_need stream_take(struct stream *stream, const struct ssm_engine *engine, struct ssm_hop *step)
{
    if (stream->hops == 0 && !atomic_load_explicit(&stream->ended, memory_order_relaxed)) {
        stream->hops = begin(stream, engine);
    }
    if (stream->hops > 0 && ladder_runs(&stream->ladder, engine)) {
        *step = ladder_step(&stream->ladder, engine, stream->staging, stream->hops, stream->elapsed);
        return STREAM_STEP;
    }
    *step = (struct ssm_hop){.count = stream->hops};
    bool own = stream_is_of(stream, engine), passes = stream->hops > 0 && stream->ladder.steps == 0 && own;
    return passes ? STREAM_PASS : own && stream->waits ? STREAM_WAITS : STREAM_NOTHING;
}

bool stream_deliver(struct stream *stream, const struct ssm_hop *step, int64_t enq, int64_t inf, int64_t *overdue)
{
    struct ladder *ladder = &stream->ladder;
    if (step->stream && !ladder_stepped(ladder, step)) {
        return false;
    }
    *overdue = way_out_note_delay(stream, inf);
    way_out_deliver(stream, enq, inf);
    count(stream->counters, COUNTER_BLOWN, ladder_lead(ladder)->blown ? (uint64_t)stream->hops : 0);
    ladder_end(ladder, stream->hops, stream->elapsed);
    stream->elapsed = 1;
    stream->hops = 0;
    return true;
}

bool stream_is_fed(const struct stream *stream)
{
    return stream->feed && !feed_ended(stream->feed);
}

/* ---- Catching up. ---- */

/* The stream works in the piece's room, or in its own again, where what is staged moves along. */
static void change_rooms(struct stream *stream, struct stream_piece *piece)
{
    float *staging = stream->staging;
    bool goes = stream->staged_arrived == stream->own_arrived;
    memcpy(piece->staging, staging, stream->staged * sizeof(float));
    stream->staging = piece->staging;
    piece->staging = staging;
    stream->staged_arrived = goes ? piece->arrived : stream->own_arrived;
    ladder_swap_out(&stream->ladder, &piece->out);
}

bool stream_begin_scan(struct stream *stream, struct stream_piece *piece, struct ssm_hop *scan)
{
    size_t room = is_behind(stream) && stream->hops == 0 ? room_in_sinks(stream, STREAM_PIECE) : 0;
    if (room <= STREAM_HOPS || !ladder_is_settled(&stream->ladder)) {
        return false;
    }
    change_rooms(stream, piece);
    stream->hops = (int)way_in_fill(stream, room);
    if (stream->hops == 0) {
        change_rooms(stream, piece);
        return false;
    }
    ladder_plan(&stream->ladder);
    *scan = ladder_step(&stream->ladder, main_of(stream)->engine, stream->staging, stream->hops, stream->elapsed);
    return true;
}

void stream_end_scan(struct stream *stream, struct stream_piece *piece, const struct ssm_hop *scan, int64_t enq, int64_t inf)
{
    int64_t overdue;
    stream_deliver(stream, scan, enq, inf, &overdue);
    change_rooms(stream, piece);
}

/* Where in the stream staging begins. */
static uint64_t position_of(const struct stream *stream)
{
    return stream->entered + stream->shift + (stream->skip.entered ? stream->skip.samples : 0);
}

/* Everything whole is out: give the rest to who goes on with it. What has yet to come out from before a hole doesn't. */
static void leave(struct stream *stream)
{
    struct leaving *leave = atomic_load(&stream->leave);
    int64_t left = stream->left > stream->least ? stream->left : stream->least;
    uint64_t position = position_of(stream), out = (uint64_t)left + stream->shift;
    bool hole = stream->skip.samples > 0;
    int got = ssm_state_save(main_of(stream)->engine, main_of(stream)->slot, leave->state, leave->state_size);
    memcpy(leave->waiting, stream->staging, stream->staged * sizeof(float));
    leave->record = (struct record){.position = position, .out = hole ? position : out, .taken = stream->position,
                                    .captured = way_out_capture_time(stream, position), .rate = (uint32_t)stream->rate,
                                    .n_waiting = stream->staged, .waiting = leave->waiting, .state = leave->state,
                                    .state_size = got > 0 ? (size_t)got : 0};
    if (hole) {
        stream->hole = (struct hole){stream->hole.n + position - out, out, position, COUNTER_RING_FULL};
    }
    stream->position = stream->began_in + (out - stream->began) * (uint64_t)stream->rate / (uint64_t)stream->model->rate;
}

static void end_sink(struct stream *stream, struct sink *sink, uint64_t length)
{
    sink->ops->end(sink, stream->channel, &stream->hole, length);
}

static void end(struct stream *stream)
{
    for (int i = 0; i < stream->n_sinks; i++) {
        end_sink(stream, stream->sinks[i], stream->position - stream->began_in);
    }
    atomic_store(&stream->ended, true);
}

bool stream_retire(struct stream *stream)
{
    size_t most = stream->leaves ? (size_t)stream->model->hop - 1 : 0;
    bool ended = atomic_load_explicit(&stream->ended, memory_order_relaxed);
    if (!stream->flushed || stream->staged > most || stream->hops > 0 || ended) {
        return false;
    }
    if (stream->leaves) {
        leave(stream);
    }
    end(stream);
    return true;
}

/* ---- Changes while it runs. ---- */

/* How much of the input what came out so far is, at the feed's rate. */
static uint64_t length_out(const struct stream *stream)
{
    int64_t left = stream->left > stream->least ? stream->left : stream->least;
    uint64_t out = left > 0 ? (uint64_t)left + stream->shift : 0;
    return out > stream->began ? (out - stream->began) * (uint64_t)stream->rate / (uint64_t)stream->model->rate : 0;
}

static bool is_among(struct sink *const *sinks, int n, const struct sink *sink)
{
    while (n > 0 && sinks[n - 1] != sink) {
        n--;
    }
    return n > 0;
}

/* Those of `sinks` that are not among the others end. */
static void end_others(struct stream *stream, struct sink *const *sinks, int n, struct sink *const *others, int n_others)
{
    for (int i = 0; i < n; i++) {
        if (!is_among(others, n_others, sinks[i])) {
            end_sink(stream, sinks[i], length_out(stream));
        }
    }
}

void stream_change(struct stream *stream, const struct stream_change *change)
{
    if (!stream_ended(stream)) {
        end_others(stream, stream->sinks, stream->n_sinks, change->sinks, change->n_sinks);
    } else {
        end_others(stream, change->sinks, change->n_sinks, stream->sinks, stream->n_sinks);
    }
    stream->sinks = change->sinks;
    stream->n_sinks = change->n_sinks;
    stream->deadline = change->deadline;
    if (stream->blend) {
        blend_limit(stream->blend, change->share);
    }
    if (change->switches) {
        atomic_store_explicit(&stream->bypass, change->bypass, memory_order_relaxed);
    }
}

struct successor {
    struct ladder_side side;
};

struct successor *successor_create(struct ssm_engine *engine)
{
    struct successor *successor = calloc(1, sizeof *successor);
    if (successor && ladder_side_init(&successor->side, engine, STREAM_HOPS) < 0) {
        free(successor);
        return NULL;
    }
    return successor;
}

void successor_destroy(struct successor *successor)
{
    if (successor) {
        free(successor->side.own);
        free(successor);
    }
}

void stream_await(struct stream *stream, const struct successor *successor)
{
    ladder_await(&stream->ladder, &successor->side);
}

void stream_await_none(struct stream *stream)
{
    ladder_await_none(&stream->ladder);
}

void stream_succeed(struct stream *stream)
{
    ladder_succeed(&stream->ladder);
}

bool stream_succeeded(const struct stream *stream)
{
    return ladder_succeeded(&stream->ladder) || stream_ended(stream);
}

bool stream_settle(struct stream *stream, struct successor *successor)
{
    stream->halts = stream->hops > 0;
    if (stream->halts) {
        return false;
    }
    ladder_settle(&stream->ladder);
    successor->side = stream->ladder.sides[2];
    stream->model = main_of(stream)->model;
    move_staging(stream);
    return true;
}

void stream_cut(struct stream *stream)
{
    if (!stream_ended(stream)) {
        stream->position = stream->began_in + length_out(stream);
        end(stream);
    }
}

/* ---- What others ask for. ---- */

int stream_reset(struct stream *stream)
{
    return ladder_reset(&stream->ladder);
}

size_t stream_state_size(const struct stream *stream)
{
    return ssm_state_size(main_of(stream)->engine);
}

/* At which rate a record of it counts its source's samples. */
static uint32_t record_rate(const struct stream *stream)
{
    return stream->rows ? CADENCE_TICKS : (uint32_t)stream->rate;
}

int stream_copy(struct stream *stream, struct record *record, void *state, size_t size)
{
    if (stream->hops > 0 || main_of(stream)->away > 0) { /* not all of its models have stepped on what came so far */
        return SSM_REFUSED;
    }
    bool rows = stream->rows != NULL;
    uint64_t position = rows ? stream->ticks : position_of(stream);
    uint64_t delay = rows ? delay_ticks(stream) : (uint64_t)stream->model->delay;
    int got = ssm_state_save(main_of(stream)->engine, main_of(stream)->slot, state, size);
    *record = (struct record){.position = position, .out = position > delay ? position - delay : 0,
                              .taken = stream->position, .captured = rows ? stream->arrived : way_out_capture_time(stream, position),
                              .rate = record_rate(stream), .time = stream->time, .state = state,
                              .state_size = got > 0 ? (size_t)got : 0};
    return got > 0 ? SSM_OK : got;
}

int stream_resume(struct stream *stream, const struct record *record, uint64_t at, struct ssm_error *err)
{
    if (record->rate != record_rate(stream)) {
        return refuse(err, 65, "a stream's state from a source of %u Hz, and this one has %u", record->rate, record_rate(stream));
    }
    if (ssm_state_load(main_of(stream)->engine, main_of(stream)->slot, record->state, record->state_size, err) != SSM_OK) {
        return -1;
    }
    stream->resume = (struct resume){.pending = true, .position = record->position, .out = record->out,
                                     .captured = record->captured, .at = at, .time = record->time};
    return 0;
}

bool stream_leave(struct stream *stream, struct leaving *leaving)
{
    bool can = !atomic_load_explicit(&stream->bypass, memory_order_relaxed) && ladder_rung(&stream->ladder) == RUNG_MODEL;
    atomic_store(&stream->leave, can ? leaving : NULL);
    return can;
}

int stream_enter(struct stream *stream, const struct record *record, struct ssm_error *err)
{
    uint64_t in = (uint64_t)stream->rate, out = (uint64_t)stream->model->rate, hop = (uint64_t)stream->model->hop;
    bool begun = stream->position > 0 || stream->raw_n > 0 || stream->staged > 0 || stream->flushed;
    if (!stream->feed || begun || stream->resume.pending) {
        return refuse(err, 75, "the stream here has begun already");
    }
    if (record->rate != (uint32_t)stream->rate) {
        return refuse(err, 65, "a stream's state from a source of %u Hz, and this one has %d", record->rate, stream->rate);
    }
    if (record->position % hop != 0 || record->n_waiting >= hop) {
        return refuse(err, 65, "a stream's state with hops of another size");
    }
    if (ssm_state_load(main_of(stream)->engine, main_of(stream)->slot, record->state, record->state_size, err) != SSM_OK) {
        return -1;
    }
    uint64_t units = record->position / stream->unit_out, end = record->position + record->n_waiting;
    uint64_t taken = scale_up(record->taken, stream->rate, stream->model->rate);
    uint64_t hole = taken > end ? (taken - end) * in / out : 0;
    stream->skipped = units * stream->unit_in;
    stream->shift = units * stream->unit_out;
    stream->entered = record->position - stream->shift;
    stream->left = (int64_t)stream->entered - stream->model->delay;
    stream->least = (int64_t)record->out - (int64_t)stream->shift;
    stream->began = record->out;
    stream->began_in = scale_up(record->out, stream->model->rate, stream->rate);
    stream->position = record->taken - hole;
    memcpy(stream->staging, record->waiting, record->n_waiting * sizeof(float));
    stream->staged = record->n_waiting;
    if (hole > 0) {
        way_in_note_hole(stream, hole, COUNTER_RING_FULL);
    }
    return 0;
}

void stream_mark(struct stream *stream, _Atomic uint64_t *mark)
{
    stream->mark = mark;
}

bool stream_bypass(struct stream *stream, bool bypass)
{
    if (stream->blend) {
        atomic_store_explicit(&stream->bypass, bypass, memory_order_relaxed);
    }
    return stream->blend != NULL;
}

uint64_t stream_hops(const struct stream *stream)
{
    uint64_t hop = (uint64_t)stream->hop;
    return (atomic_load_explicit(&stream->samples_out, memory_order_relaxed) + hop - 1) / hop;
}

uint64_t stream_samples(const struct stream *stream)
{
    return atomic_load_explicit(&stream->samples_in, memory_order_relaxed);
}

bool stream_ended(const struct stream *stream)
{
    return atomic_load(&stream->ended);
}

uint64_t stream_late(const struct stream *stream)
{
    return atomic_load_explicit(&stream->late, memory_order_relaxed);
}

int64_t stream_delay(const struct stream *stream)
{
    return atomic_load_explicit(&stream->delay, memory_order_relaxed);
}

/* ---- In overload. ---- */

bool stream_gives_way(const struct stream *stream)
{
    return stream->deadline > 0 && !atomic_load_explicit(&stream->ended, memory_order_relaxed);
}

bool stream_is_patient(const struct stream *stream)
{
    return stream->patient;
}

int stream_priority(const struct stream *stream)
{
    return stream->priority;
}

enum rung stream_rung(const struct stream *stream)
{
    return ladder_rung(&stream->ladder);
}

bool stream_lower(struct stream *stream)
{
    return ladder_lower(&stream->ladder);
}

bool stream_raise(struct stream *stream)
{
    return ladder_raise(&stream->ladder);
}
