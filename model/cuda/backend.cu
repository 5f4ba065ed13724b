/* SPDX-License-Identifier: MIT */
/* The model on one GPU: hops in host memory, states in the GPU's.
 *
 * Few streams: a step is one CUDA graph, captured at open for a number of rows (1, 2, 4, ... 512); rows beyond the hops
 * of the call stand in a spare slot. Its first kernel fetches the hops from pinned memory over the bus, its last layer
 * writes the outputs back there, and a counter in pinned memory says when: no copy engine, no driver call on the way.
 *
 * Many streams, and recordings: the rows go in parts through three lanes, each with its own CUDA stream and buffers, so
 * that while one part is computed the next is copied in and the one before copied out. Pinned memory has room for all
 * rows of a call: the GPU gets every part as soon as it is gathered, and from then on doesn't wait for the host, which
 * others may keep from running for milliseconds. Parts of a step whose hops all lie within the GPU's reach aren't
 * gathered: the host writes where they are, and the GPU reads and writes them there. Of a recording each part starts
 * from the state that the one before it left, so only the copies run side by side. */
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "dsp/clock.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/mamba_step.h"
#include "model/cuda/chain.h"
#include "model/cuda/device.h"
#include "model/cuda/move.h"
#include "model/refuse.h"

extern "C" const struct backend_cuda *ssm_backend_cuda(int abi);

struct lane {
    cudaStream_t stream;
    cudaEvent_t computed;
    struct chain_bench bench;
    char *records_gpu; /* (ROWS)          */
    float *out_gpu;    /* (ROWS, outputs) */
};

/* Rows of a call that go through a lane at once. */
struct part {
    cudaEvent_t delivered;
    int first, rows;
    int missing; /* rows still to be moved on the host */
    bool direct; /* no rows are: the GPU moves them    */
};

namespace
{

enum {
    STEP_PART = 4096,     /* rows of a part at most: so few that the pipeline fills soon, and enough for mamba_stack.h */
    PAIR_ROWS = 3072,     /* so many may go as two parts at least: one's products beside the other's states */
    SEQUENCE_PART = 4096, /* rows of a recording: so many that the scan fills the machine                   */
    ROWS = SEQUENCE_PART,
    COPY_SHARE = 40, /* states on their way at once: 1 of so many streams, and no more than COPY_BYTES */
    SCAN_PARTS = 4, /* a call: more make whoever reads and writes wait longer for it */
    GRAPH_ROWS = 512,
    REACHES = 8,
    BUCKETS = 10, /* 1 << 0 ... 1 << 9 rows */
    LANES = 3,
    UNIT = 64,          /* rows moved at a time: a thread that is kept from running holds up no more */
    SHARED_ROWS = 1024, /* from here on helpers pay                                                  */
    HELPERS = 4,        /* threads at most: memory isn't faster for more of them                     */
    ELAPSED_MAX = 1000000,
    OPEN_PATIENCE_S = 100, /* code is loaded */
    PATIENCE_MOST_S = 1000000,
    GLANCE_MS = 10 /* who waits doesn't count more at once: that it didn't run itself is no sign of the GPU's */
};
/* A set of copies is begun every step at best, so this is what they take of the bus and of the host's memory: at a hop of
 * 10 ms every state once a second up to 20,000 streams of 198 KB. Larger sets have the steps they go beside wait for the
 * bus (160 MB: by 0.7 ms), and one thread carries no more to the standby in a hop. */
constexpr size_t COPY_BYTES = 40000000;
constexpr size_t SLACK = size_t(256) << 20; /* left free on the GPU: kernels and graphs take some */

/* Where the rows of a call come from and go to. */
struct call {
    const struct backend_hop *hops;
    const int *picked; /* (rows)  the hop of a row; NULL: rows are the one hop's, in order of time */
    int pass;          /* which of a hop's hops, when picked */
    int rows, most;    /* in all, and of a part */
};

/* Rows on their way between the caller's memory and the pinned one, a unit at a time by whoever has time. */
struct haul {
    struct cuda *cuda;
    struct call call;
    bool out;
    int end, next; /* rows; next: by all threads */
};

/* Memory of the program's that the GPU reads and writes. */
struct reach {
    const char *memory;
    char *device; /* the same as the GPU sees it */
    size_t bytes;
    bool pinned_here;
};

struct cuda {
    struct backend base;
    const struct model *model;
    int device, streams, threads;
    bool pairs; /* from PAIR_ROWS on two parts side by side are faster than one */
    struct team *team; /* NULL with one thread */
    struct chain *chain;
    struct chain_slots slots;
    struct lane lanes[LANES];
    struct part *parts; /* (room / STEP_PART) */
    struct reach reaches[REACHES];
    int n_reaches;
    struct move_row *rows; /* (room) pinned: of direct parts                      */
    uint32_t *odd;         /* (room / STEP_PART) pinned: they gave NaN or inf      */
    bool reached;          /* a part of the call in progress is direct, and begun */
    struct haul haul;
    size_t room;   /* rows                           */
    char *records; /* (room) pinned                  */
    float *out;    /* (room, outputs) pinned         */
    cudaEvent_t begun; /* the first part of a call   */
    cudaGraphExec_t graphs[BUCKETS];
    int buckets;
    uint32_t *done_count;
    uint32_t *done;          /* pinned: graphs finished */
    uint32_t launched;       /* graphs begun            */
    float *state;            /* (model->state) pinned   */
    int *picked;             /* (streams)               */
    cudaStream_t aside;      /* where copies of states are made     */
    cudaEvent_t gathered, copied;
    int32_t *copy_slots;     /* (copies) pinned                     */
    float *copies_gpu;       /* (copies, model->state)              */
    float *copies;           /* (2, copies, model->state) pinned    */
    bool second;             /* the copies begun last are there     */
    bool gathering;          /* the lanes have yet to wait for that */
    char *gpu_memory, *pinned_memory;
    bool unordered; /* lane 0 has work that the others must wait for */
    float patience_s; /* for a sign of the GPU */
    bool hangs;       /* there was none: nothing of it can be waited for, nor freed */
    char fault[256];
};

struct cuda *of(struct backend *backend)
{
    return reinterpret_cast<struct cuda *>(backend);
}

/* Keep the first error's words, and nothing for the next GPU that this thread asks. 0, or -1. */
int check(struct cuda *cuda, cudaError_t error, const char *what)
{
    if (error == cudaSuccess) {
        return 0;
    }
    cudaGetLastError();
    if (!cuda->fault[0]) {
        snprintf(cuda->fault, sizeof cuda->fault, "failed in %s: %s", what, cudaGetErrorString(error));
    }
    return -1;
}

/* Every call begins here: a GPU that failed is not asked again, and what copies are made of is not overwritten. */
int enter(struct cuda *cuda)
{
    cudaError_t error = cuda->fault[0] ? cudaErrorUnknown : cudaSetDevice(cuda->device);
    for (int i = 0; i < LANES && cuda->gathering && !error; i++) {
        error = cudaStreamWaitEvent(cuda->lanes[i].stream, cuda->gathered, 0);
    }
    cuda->gathering = false;
    return check(cuda, error, "its selection");
}

/* ---- between hops and records ------------------------------------------------------------------------------- */

struct move_record *record_at(const struct cuda *cuda, int row)
{
    return reinterpret_cast<struct move_record *>(cuda->records +
                                                  size_t(row) * move_record_bytes(cuda->model->info.inputs));
}

float *output_at(const struct cuda *cuda, int row)
{
    return cuda->out + size_t(row) * size_t(cuda->model->info.outputs);
}

const struct backend_hop *hop_of(const struct call *call, int row, int *at)
{
    *at = call->picked ? call->pass : row;
    return call->picked ? call->hops + call->picked[row] : call->hops;
}

float elapsed_at(const struct backend_hop *hop, int at)
{
    const float elapsed = at < hop->elapsed_count ? hop->elapsed[at] : 1.0f;
    return elapsed > 0 ? std::fmin(elapsed, float(ELAPSED_MAX)) : 1.0f;
}

void write_record(const struct cuda *cuda, const struct call *call, int row)
{
    struct move_record *record = record_at(cuda, row);
    int at;
    const struct backend_hop *hop = hop_of(call, row, &at);
    const size_t width = size_t(cuda->model->info.inputs);
    record->slot = hop->slot;
    record->elapsed = elapsed_at(hop, at);
    memcpy(record->samples, hop->in + size_t(at) * width, width * sizeof *hop->in);
}

/* NaN and inf are what has every bit of the exponent; in integers, which the compiler takes several of at a time. */
bool is_finite(const float *x, size_t n)
{
    const uint32_t exponent = 0x7f800000;
    uint32_t odd = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        odd |= uint32_t((bits & exponent) == exponent);
    }
    return !odd;
}

/* A hop's output: tell of what is no number. */
void look_at(struct cuda *cuda, const struct backend_hop *hop, const float *out)
{
    if (hop->blown && !is_finite(out, size_t(cuda->model->info.outputs))) {
        __atomic_store_n(hop->blown, true, __ATOMIC_RELAXED); /* rows of one recording go to several threads */
        __atomic_store_n(&cuda->base.blown, true, __ATOMIC_RELAXED);
    }
}

void read_output(struct cuda *cuda, const struct call *call, int row)
{
    const float *out = output_at(cuda, row);
    int at;
    const struct backend_hop *hop = hop_of(call, row, &at);
    const size_t width = size_t(cuda->model->info.outputs);
    memcpy(hop->out + size_t(at) * width, out, width * sizeof *out);
    look_at(cuda, hop, out);
}

void carry_row(struct haul *haul, int row)
{
    if (haul->out) {
        read_output(haul->cuda, &haul->call, row);
    } else {
        write_record(haul->cuda, &haul->call, row);
    }
}

/* The next unit; false when there is none left. */
bool move_unit(struct haul *haul)
{
    const int first = __atomic_fetch_add(&haul->next, +UNIT, __ATOMIC_RELAXED), end = std::min(first + UNIT, haul->end);
    for (int row = first; row < end; row++) {
        carry_row(haul, row);
    }
    if (first < end) {
        __atomic_fetch_sub(&haul->cuda->parts[first / haul->call.most].missing, end - first, __ATOMIC_RELEASE);
    }
    return end < haul->end;
}

void move_units(void *arg, int)
{
    while (move_unit(static_cast<struct haul *>(arg))) {
    }
}

/* Begin to move the parts [first, end), beside `helpers` or alone: finish_move for each. */
void begin_move(struct cuda *cuda, const struct call *call, int first, int end, bool out, bool helpers)
{
    const struct part *last = &cuda->parts[end - 1];
    if (cuda->team) {
        team_wait(cuda->team); /* who came late for the last haul found nothing left to do */
    }
    cuda->haul = {cuda, *call, out, last->first + last->rows, cuda->parts[first].first};
    for (int i = first; i < end; i++) {
        cuda->parts[i].missing = cuda->parts[i].rows;
    }
    if (cuda->team && helpers && cuda->haul.end - cuda->haul.next >= SHARED_ROWS) {
        team_start(cuda->team, cuda->threads, move_units, &cuda->haul);
    }
}

/* Until a part's rows have been moved: by this thread too as long as there are any to take. */
void finish_move(struct cuda *cuda, const struct part *part)
{
    bool more = true;
    while (__atomic_load_n(&part->missing, __ATOMIC_ACQUIRE) > 0) {
        more = more && move_unit(&cuda->haul);
        if (!more) {
            __builtin_ia32_pause();
        }
    }
}

/* The call failed: nobody touches the caller's memory any more. */
void abandon_move(struct cuda *cuda)
{
    __atomic_store_n(&cuda->haul.next, cuda->haul.end, __ATOMIC_RELAXED);
    if (cuda->team) {
        team_wait(cuda->team);
    }
}

/* ---- hops within the GPU's reach ---------------------------------------------------------------------------- */

/* Where the GPU sees it; NULL: nowhere. */
float *in_reach(const struct cuda *cuda, const float *at, size_t bytes)
{
    for (int i = 0; i < cuda->n_reaches; i++) {
        const struct reach *reach = &cuda->reaches[i];
        const size_t offset = size_t(at) - size_t(reach->memory); /* before it: huge */
        if (offset < reach->bytes && bytes <= reach->bytes - offset) {
            return reinterpret_cast<float *>(reach->device + offset);
        }
    }
    return nullptr;
}

/* Write where a part's hops are. False: not all are within reach. */
bool list_rows(struct cuda *cuda, const struct call *call, const struct part *part)
{
    const size_t inputs = size_t(cuda->model->info.inputs), outputs = size_t(cuda->model->info.outputs);
    bool all = cuda->n_reaches > 0 && call->picked;
    for (int row = part->first; all && row < part->first + part->rows; row++) {
        int at;
        const struct backend_hop *hop = hop_of(call, row, &at);
        const float *in = in_reach(cuda, hop->in + size_t(at) * inputs, inputs * sizeof *in);
        float *out = in_reach(cuda, hop->out + size_t(at) * outputs, outputs * sizeof *out);
        cuda->rows[row] = {in, out, hop->slot, elapsed_at(hop, at)};
        all = in && out;
    }
    return all;
}

uint32_t *odd_of(const struct cuda *cuda, const struct part *part)
{
    return cuda->odd + (part - cuda->parts);
}

/* What came of a direct part lies where it is wanted. */
void look_over(struct cuda *cuda, const struct call *call, const struct part *part)
{
    const size_t outputs = size_t(cuda->model->info.outputs);
    const bool odd = __atomic_load_n(odd_of(cuda, part), __ATOMIC_ACQUIRE);
    for (int row = part->first; odd && row < part->first + part->rows; row++) {
        int at;
        const struct backend_hop *hop = hop_of(call, row, &at);
        look_at(cuda, hop, hop->out + size_t(at) * outputs);
    }
}

/* ---- waiting for the GPU ------------------------------------------------------------------------------------ */

/* Time that a thread has waited, as far as it ran. */
struct patience {
    int64_t last, left;
};

struct patience be_patient(const struct cuda *cuda)
{
    return {clock_now(), int64_t(1e9 * double(cuda->patience_s))};
}

/* Nothing yet: is it over with patience? Then that is the fault. */
bool lose_patience(struct cuda *cuda, struct patience *patience)
{
    const int64_t now = clock_now();
    patience->left -= std::min(now - patience->last, int64_t(GLANCE_MS) * 1000000);
    patience->last = now;
    if (patience->left < 0 && !cuda->fault[0]) {
        snprintf(cuda->fault, sizeof cuda->fault, "hangs: no sign of it for %g s", double(cuda->patience_s));
        cuda->hangs = true;
    }
    return patience->left < 0;
}

/* Spins: a step's end is told in 2 us, not 20 or more; the thread that waits has nothing else to do. */
int wait_event(struct cuda *cuda, cudaEvent_t event, const char *what)
{
    struct patience patience = be_patient(cuda);
    for (;;) {
        const cudaError_t state = cudaEventQuery(event);
        if (state != cudaErrorNotReady) {
            return check(cuda, state, what);
        }
        if (lose_patience(cuda, &patience)) {
            return -1;
        }
        __builtin_ia32_pause();
    }
}

/* For all on lane 0's stream. */
int wait_lane(struct cuda *cuda, const char *what)
{
    const cudaError_t error = cudaEventRecord(cuda->begun, cuda->lanes[0].stream);
    return check(cuda, error, what) || wait_event(cuda, cuda->begun, what) ? -1 : 0;
}

/* ---- few rows: graphs --------------------------------------------------------------------------------------- */

/* The launches of a small step, straight from and to pinned memory. */
cudaError_t launch_small(struct cuda *cuda, struct lane *lane, int rows)
{
    const struct chain_bench *bench = &lane->bench;
    const cudaError_t error = move_in(cuda->records, rows, cuda->model->info.inputs, bench->slots, bench->elapsed,
                                      bench->values[0], lane->stream);
    return error ? error : chain_run(cuda->chain, &cuda->slots, bench, rows, false, cuda->out, lane->stream);
}

bool is_done(const struct cuda *cuda)
{
    return __atomic_load_n(cuda->done, __ATOMIC_ACQUIRE) == cuda->launched;
}

/* Until the graph launched last has finished. Errors never reach the counter, so the stream is asked at times. */
int wait_done(struct cuda *cuda)
{
    struct patience patience = be_patient(cuda);
    for (unsigned spins = 1; !is_done(cuda); spins++) {
        if (spins % 16384 == 0) {
            const cudaError_t state = cudaStreamQuery(cuda->lanes[0].stream);
            if (state != cudaErrorNotReady && !is_done(cuda)) {
                return check(cuda, state ? state : cudaErrorUnknown, "a step");
            }
            if (lose_patience(cuda, &patience)) {
                return -1;
            }
        }
        __builtin_ia32_pause();
    }
    return 0;
}

int step_small(struct cuda *cuda, const struct call *call)
{
    struct backend_spent *spent = &cuda->base.spent;
    int bucket = 0;
    *spent = {};
    spent->start = clock_now();
    while (1 << bucket < call->rows) {
        bucket++;
    }
    for (int row = 0; row < call->rows; row++) {
        write_record(cuda, call, row);
    }
    for (int row = call->rows; row < 1 << bucket; row++) {
        record_at(cuda, row)->slot = cuda->streams;
    }
    if (check(cuda, cudaGraphLaunch(cuda->graphs[bucket], cuda->lanes[0].stream), "a step's launch")) {
        return -1;
    }
    cuda->launched++;
    spent->first = spent->all = clock_now();
    if (wait_done(cuda)) {
        return -1;
    }
    spent->back = clock_now();
    for (int row = 0; row < call->rows; row++) {
        read_output(cuda, call, row);
    }
    spent->done = clock_now();
    return 0;
}

/* ---- many rows: parts --------------------------------------------------------------------------------------- */

/* A part's rows to where its lane computes. */
cudaError_t launch_in(struct cuda *cuda, const struct part *part, struct lane *lane, const struct lane *before)
{
    const struct chain_bench *bench = &lane->bench;
    const int inputs = cuda->model->info.inputs, rows = part->rows;
    if (part->direct) {
        return move_fetch(cuda->rows + part->first, rows, inputs, bench->slots, bench->elapsed, bench->values[0],
                          lane->stream);
    }
    cudaError_t error = cudaMemcpyAsync(lane->records_gpu, record_at(cuda, part->first),
                                        size_t(rows) * move_record_bytes(inputs), cudaMemcpyHostToDevice, lane->stream);
    if (!error && before) {
        error = cudaStreamWaitEvent(lane->stream, before->computed, 0);
    }
    return error ? error
                 : move_in(lane->records_gpu, rows, inputs, bench->slots, bench->elapsed, bench->values[0], lane->stream);
}

cudaError_t launch_out(struct cuda *cuda, const struct part *part, struct lane *lane)
{
    const int outputs = cuda->model->info.outputs, rows = part->rows;
    if (part->direct) {
        return move_deliver(cuda->rows + part->first, rows, outputs, lane->out_gpu, odd_of(cuda, part), lane->stream);
    }
    return cudaMemcpyAsync(output_at(cuda, part->first), lane->out_gpu, size_t(rows) * size_t(outputs) * sizeof(float),
                           cudaMemcpyDeviceToHost, lane->stream);
}

/* A part through a lane: in, through the layers (behind those of `before`, if not NULL), out. */
cudaError_t launch_part(struct cuda *cuda, const struct part *part, struct lane *lane, bool sequence,
                        const struct lane *before)
{
    cudaError_t error = launch_in(cuda, part, lane, before);
    if (!error) {
        error = chain_run(cuda->chain, &cuda->slots, &lane->bench, part->rows, sequence, lane->out_gpu, lane->stream);
    }
    if (!error) {
        error = cudaEventRecord(lane->computed, lane->stream);
    }
    if (!error) {
        error = launch_out(cuda, part, lane);
    }
    return error ? error : cudaEventRecord(part->delivered, lane->stream);
}

/* Slots that were zeroed on lane 0's stream are zero for the other lanes too. */
int order_lanes(struct cuda *cuda)
{
    cudaError_t error = cudaSuccess;
    if (cuda->unordered) {
        error = cudaEventRecord(cuda->lanes[0].computed, cuda->lanes[0].stream);
        for (int i = 1; i < LANES && !error; i++) {
            error = cudaStreamWaitEvent(cuda->lanes[i].stream, cuda->lanes[0].computed, 0);
        }
        cuda->unordered = false;
    }
    return check(cuda, error, "a batch's start");
}

/* Rows of a part of a step: whole units, and parts alike, for a small one takes the GPU longer than its share. */
int step_part(const struct cuda *cuda, int rows)
{
    const int least = cuda->pairs && rows >= PAIR_ROWS ? 2 : 1;
    const int parts = std::max(least, (rows + STEP_PART - 1) / STEP_PART);
    return (rows + parts * UNIT - 1) / (parts * UNIT) * UNIT;
}

/* Cut the call's rows into parts; gives how many. */
int cut(struct cuda *cuda, const struct call *call)
{
    int n = 0;
    for (int first = 0; first < call->rows; first += call->most) {
        cuda->parts[n].first = first;
        cuda->parts[n++].rows = std::min(call->most, call->rows - first);
    }
    return n;
}

/* Have part i at hand for the GPU, those before it being so. The first that isn't all within its reach, and all behind it, are
 * gathered: beside the GPU's work on what came before. */
void gather_part(struct cuda *cuda, const struct call *call, int i, int n)
{
    struct part *part = &cuda->parts[i];
    const bool so_far = i == 0 || cuda->parts[i - 1].direct;
    part->direct = so_far && list_rows(cuda, call, part);
    cuda->reached = cuda->reached || part->direct;
    *odd_of(cuda, part) = 0;
    if (so_far && !part->direct) {
        begin_move(cuda, call, i, n, false, true);
    }
    if (!part->direct) {
        finish_move(cuda, part);
    }
}

/* Each part to the GPU as soon as it is at hand. */
int feed_parts(struct cuda *cuda, const struct call *call, int n)
{
    const bool sequence = !call->picked;
    for (int i = 0; i < n; i++) {
        struct lane *lane = &cuda->lanes[i % LANES], *before = &cuda->lanes[(i + LANES - 1) % LANES];
        gather_part(cuda, call, i, n);
        lane->bench.beside = sequence || n == 1 ? 0 : i + 1 < n ? STEP_BESIDE : STEP_LAST;
        if (i == 0) {
            cuda->base.spent.first = clock_now();
            if (check(cuda, cudaEventRecord(cuda->begun, lane->stream), "a batch's start")) {
                return -1;
            }
        }
        if (check(cuda, launch_part(cuda, &cuda->parts[i], lane, sequence, sequence && i ? before : nullptr),
                  "a batch's launch")) {
            return -1;
        }
    }
    cuda->base.spent.all = clock_now();
    return 0;
}

/* Is the GPU ahead of whoever carries its outputs away, or at its end? Then helpers pay; until then it is busy anyway. */
bool is_behind(const struct cuda *cuda, int i, int n)
{
    return i + 2 >= n || cudaEventQuery(cuda->parts[i + 1].delivered) == cudaSuccess;
}

/* What each part gave to the caller. */
int collect_parts(struct cuda *cuda, const struct call *call, int n)
{
    for (int i = 0; i < n; i++) {
        if (wait_event(cuda, cuda->parts[i].delivered, "a batch")) {
            return -1;
        }
        cuda->base.spent.back = clock_now();
        if (cuda->parts[i].direct) {
            look_over(cuda, call, &cuda->parts[i]);
        } else {
            begin_move(cuda, call, i, i + 1, true, is_behind(cuda, i, n));
            finish_move(cuda, &cuda->parts[i]);
        }
    }
    return 0;
}

/* How long the GPU was at it: from the first part's start to when the last of each lane was there. */
void time_parts(struct cuda *cuda, int n)
{
    float most = 0, ms;
    for (int i = std::max(0, n - LANES); i < n; i++) {
        most = cudaEventElapsedTime(&ms, cuda->begun, cuda->parts[i].delivered) ? most : std::max(most, ms);
    }
    cuda->base.spent.device = int64_t(1e6 * double(most));
}

/* last: none of the same step follows. */
int run_parts(struct cuda *cuda, const struct call *call, bool last)
{
    const int n = cut(cuda, call);
    cuda->base.spent = {};
    cuda->base.spent.start = clock_now();
    if (order_lanes(cuda)) {
        return -1;
    }
    cuda->reached = false;
    const int fed = feed_parts(cuda, call, n);
    if (!fed && last && cuda->base.meanwhile) {
        cuda->base.meanwhile(cuda->base.meanwhile_arg);
    }
    if (fed || collect_parts(cuda, call, n)) {
        abandon_move(cuda);
        cuda->base.lingers = cuda->reached;
        return -1;
    }
    cuda->base.spent.done = clock_now();
    time_parts(cuda, n);
    return 0;
}

/* ---- the operations ----------------------------------------------------------------------------------------- */

/* The hops that have a hop number `pass`; do any have one more? */
int pick(struct cuda *cuda, const struct backend_hop *hops, int n, int pass, bool *more)
{
    int rows = 0;
    *more = false;
    for (int i = 0; i < n; i++) {
        if (hops[i].count > pass) {
            cuda->picked[rows++] = i;
            *more = *more || hops[i].count > pass + 1;
        }
    }
    return rows;
}

int cuda_step(struct backend *backend, const struct backend_hop *hops, int n)
{
    struct cuda *cuda = of(backend);
    int error = enter(cuda);
    bool more = true;
    for (int pass = 0; more && !error; pass++) {
        const int rows = pick(cuda, hops, n, pass, &more);
        const struct call call = {hops, cuda->picked, pass, rows, step_part(cuda, rows)};
        error = call.rows <= GRAPH_ROWS ? step_small(cuda, &call) : run_parts(cuda, &call, !more);
    }
    return error;
}

int cuda_scan(struct backend *backend, const struct backend_hop *hop)
{
    struct cuda *cuda = of(backend);
    const struct call call = {hop, nullptr, 0, hop->count, SEQUENCE_PART};
    return enter(cuda) ? -1 : run_parts(cuda, &call, false);
}

int cuda_state_get(struct backend *backend, int slot, float *state)
{
    struct cuda *cuda = of(backend);
    cudaStream_t stream = cuda->lanes[0].stream;
    if (enter(cuda) ||
        check(cuda, chain_state_get(cuda->chain, &cuda->slots, slot, cuda->state, stream), "reading a state") ||
        wait_lane(cuda, "reading a state")) {
        return -1;
    }
    memcpy(state, cuda->state, cuda->model->state * sizeof *state);
    return 0;
}

int cuda_state_put(struct backend *backend, int slot, const float *state)
{
    struct cuda *cuda = of(backend);
    cudaStream_t stream = cuda->lanes[0].stream;
    if (enter(cuda)) {
        return -1;
    }
    if (state) {
        memcpy(cuda->state, state, cuda->model->state * sizeof *state);
    }
    cuda->unordered = true;
    if (check(cuda, chain_state_put(cuda->chain, &cuda->slots, slot, state ? cuda->state : nullptr, stream),
              "writing a state")) {
        return -1;
    }
    return state ? wait_lane(cuda, "writing a state") : 0;
}

/* Where those begun last come to: in turn, for those before are still read. */
float *copies_at(const struct cuda *cuda)
{
    return cuda->copies + (cuda->second ? size_t(cuda->base.copies) * cuda->model->state : 0);
}

/* Gathered in the GPU's memory, which the next step waits for, and brought to the host's while it runs. */
cudaError_t copy_states(struct cuda *cuda, int n)
{
    cudaError_t error = cudaEventRecord(cuda->gathered, cuda->lanes[0].stream); /* slots may just have been written there */
    error = error ? error : cudaStreamWaitEvent(cuda->aside, cuda->gathered, 0);
    for (int i = 1; i < LANES && !error; i++) {
        error = cudaStreamWaitEvent(cuda->aside, cuda->lanes[i].computed, 0); /* a step is in progress */
    }
    error = error ? error
                  : chain_state_get_all(cuda->chain, &cuda->slots, cuda->copy_slots, n, cuda->copies_gpu, cuda->aside);
    error = error ? error : cudaEventRecord(cuda->gathered, cuda->aside);
    error = error ? error : move_out(cuda->copies_gpu, copies_at(cuda), size_t(n) * cuda->model->state, cuda->aside);
    return error ? error : cudaEventRecord(cuda->copied, cuda->aside);
}

int cuda_copy_begin(struct backend *backend, const int *slots, int n)
{
    struct cuda *cuda = of(backend);
    if (enter(cuda)) {
        return -1;
    }
    std::copy(slots, slots + n, cuda->copy_slots);
    cuda->gathering = true;
    cuda->second = !cuda->second;
    return check(cuda, copy_states(cuda, n), "copying states");
}

int cuda_copy_end(struct backend *backend, const float **states)
{
    struct cuda *cuda = of(backend);
    const cudaError_t state = enter(cuda) ? cudaErrorUnknown : cudaEventQuery(cuda->copied);
    *states = copies_at(cuda);
    return state == cudaErrorNotReady ? 0 : check(cuda, state, "copying states") ? -1 : 1;
}

/* Only for a look-up: what can't be had here is gathered. */
cudaError_t add_reach(struct cuda *cuda, void *memory, size_t bytes, bool pinned)
{
    struct reach *reach = &cuda->reaches[cuda->n_reaches];
    void *device;
    cudaError_t error = cudaSetDevice(cuda->device);
    if (!error && !pinned) {
        error = cudaHostRegister(memory, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped);
    }
    if (error) {
        return error;
    }
    if ((error = cudaHostGetDevicePointer(&device, memory, 0)) != cudaSuccess) {
        if (!pinned) {
            cudaHostUnregister(memory);
        }
        return error;
    }
    *reach = {static_cast<const char *>(memory), static_cast<char *>(device), bytes, !pinned};
    cuda->n_reaches++;
    return cudaSuccess;
}

int cuda_reach(struct backend *backend, void *memory, size_t bytes, bool pinned)
{
    struct cuda *cuda = of(backend);
    if (!memory) {
        for (struct reach &reach : cuda->reaches) {
            reach.bytes = 0;
        }
        return 0;
    }
    if (cuda->fault[0] || cuda->n_reaches == REACHES) {
        return -1;
    }
    const cudaError_t error = add_reach(cuda, memory, bytes, pinned);
    if (error) {
        cudaGetLastError();
    }
    return error ? -1 : 0;
}

const char *cuda_fault(const struct backend *backend)
{
    const struct cuda *cuda = reinterpret_cast<const struct cuda *>(backend);
    return cuda->fault[0] ? cuda->fault : nullptr;
}

/* ---- opening ------------------------------------------------------------------------------------------------ */

/* Lay out all device memory; with memory, sets every pointer. */
void lay_out_gpu(struct cuda *cuda, struct arena *arena)
{
    const size_t slots = size_t(cuda->streams) + 1; /* and the spare one */
    cuda->slots.phase = arena_take<uint32_t>(arena, slots);
    cuda->slots.states = arena_take<char>(arena, slots * chain_state_bytes(cuda->chain));
    cuda->done_count = arena_take<uint32_t>(arena, 1);
    cuda->copies_gpu = arena_take<float>(arena, size_t(cuda->base.copies) * cuda->model->state);
    for (struct lane &lane : cuda->lanes) {
        lane.records_gpu = arena_take<char>(arena, ROWS * move_record_bytes(cuda->model->info.inputs));
        lane.out_gpu = arena_take<float>(arena, ROWS * size_t(cuda->model->info.outputs));
        lane.bench = chain_take_bench(cuda->chain, std::max(+STEP_PART, +GRAPH_ROWS), SEQUENCE_PART, arena);
    }
}

void lay_out_pinned(struct cuda *cuda, struct arena *arena)
{
    cuda->done = arena_take<uint32_t>(arena, 1);
    cuda->state = arena_take<float>(arena, cuda->model->state);
    cuda->copy_slots = arena_take<int32_t>(arena, size_t(cuda->base.copies));
    cuda->copies = arena_take<float>(arena, 2 * size_t(cuda->base.copies) * cuda->model->state);
    cuda->records = arena_take<char>(arena, cuda->room * move_record_bytes(cuda->model->info.inputs));
    cuda->out = arena_take<float>(arena, cuda->room * size_t(cuda->model->info.outputs));
    cuda->rows = arena_take<struct move_row>(arena, cuda->room);
    cuda->odd = arena_take<uint32_t>(arena, cuda->room / STEP_PART);
}

int refuse_streams(const struct cuda *cuda, size_t bytes, size_t bytes_free, struct ssm_error *err)
{
    const size_t stream = chain_state_bytes(cuda->chain), room = bytes_free > SLACK ? bytes_free - SLACK : 0;
    const size_t fixed = bytes - size_t(cuda->streams) * stream;
    return refuse(err, 69, "%s has %.1f GiB free, %d streams need %.1f: about %zu would fit", cuda->base.device,
                  double(bytes_free) / (1 << 30), cuda->streams, double(bytes + SLACK) / (1 << 30),
                  room > fixed ? (room - fixed) / stream : 0);
}

int refuse_fault(struct cuda *cuda, struct ssm_error *err)
{
    return refuse(err, 69, "cuda:%d %s", cuda->device, cuda->fault);
}

/* How much memory everything takes, if the GPU has it. */
int count_memory(struct cuda *cuda, int precision, bool state_bf16, size_t bytes_free, struct arena *gpu,
                 struct arena *pinned, struct ssm_error *err)
{
    if (!(cuda->chain = chain_create(cuda->model, precision, state_bf16, gpu, err))) {
        return -1;
    }
    lay_out_gpu(cuda, gpu);
    lay_out_pinned(cuda, pinned);
    cuda->base.bytes = gpu->used + pinned->used;
    cuda->base.device_bytes = gpu->used;
    const int error = gpu->used + SLACK > bytes_free ? refuse_streams(cuda, gpu->used, bytes_free, err) : 0;
    chain_destroy(cuda->chain);
    cuda->chain = nullptr;
    return error;
}

/* All memory, zeroed, and the weights in it. */
int take_memory(struct cuda *cuda, int precision, bool state_bf16, size_t bytes_free, struct ssm_error *err)
{
    struct arena gpu = {}, pinned = {};
    if (count_memory(cuda, precision, state_bf16, bytes_free, &gpu, &pinned, err)) {
        return -1;
    }
    if (check(cuda, cudaMalloc(&cuda->gpu_memory, gpu.used), "taking memory") ||
        check(cuda, cudaMemset(cuda->gpu_memory, 0, gpu.used), "clearing memory") ||
        check(cuda, cudaHostAlloc(&cuda->pinned_memory, pinned.used, cudaHostAllocMapped), "taking pinned memory")) {
        return refuse_fault(cuda, err);
    }
    memset(cuda->pinned_memory, 0, pinned.used);
    gpu = {cuda->gpu_memory, 0, cudaSuccess};
    pinned = {cuda->pinned_memory, 0, cudaSuccess};
    if (!(cuda->chain = chain_create(cuda->model, precision, state_bf16, &gpu, err))) {
        return -1;
    }
    lay_out_gpu(cuda, &gpu);
    lay_out_pinned(cuda, &pinned);
    return check(cuda, gpu.error, "copying the weights") ? refuse_fault(cuda, err) : 0;
}

cudaError_t open_lane(struct lane *lane)
{
    cudaError_t error = cudaStreamCreateWithPriority(&lane->stream, cudaStreamNonBlocking, -1); /* before copies */
    return error ? error : cudaEventCreateWithFlags(&lane->computed, cudaEventDisableTiming);
}

/* Those that a call's times are taken by. */
cudaError_t open_events(struct cuda *cuda)
{
    cudaError_t error = cudaEventCreate(&cuda->begun);
    for (size_t i = 0; i < cuda->room / STEP_PART && !error; i++) {
        error = cudaEventCreate(&cuda->parts[i].delivered);
    }
    return error;
}

/* And all its kernels run once, on the spare slot. */
cudaError_t open_aside(struct cuda *cuda)
{
    cudaError_t error = cudaStreamCreateWithPriority(&cuda->aside, cudaStreamNonBlocking, 0);
    error = error ? error : cudaEventCreateWithFlags(&cuda->gathered, cudaEventDisableTiming);
    error = error ? error : cudaEventCreateWithFlags(&cuda->copied, cudaEventDisableTiming);
    cuda->copy_slots[0] = cuda->streams;
    error = error ? error : copy_states(cuda, 1);
    return error ? error : cudaStreamSynchronize(cuda->aside);
}

cudaError_t capture(struct cuda *cuda, int rows, cudaGraphExec_t *graph)
{
    struct lane *lane = &cuda->lanes[0];
    cudaGraph_t captured = nullptr;
    cudaError_t error = cudaStreamBeginCapture(lane->stream, cudaStreamCaptureModeThreadLocal);
    if (error) {
        return error;
    }
    error = launch_small(cuda, lane, rows);
    error = error ? error : move_done(cuda->done_count, cuda->done, lane->stream);
    const cudaError_t ended = cudaStreamEndCapture(lane->stream, &captured);
    error = error ? error : ended;
    error = error ? error : cudaGraphInstantiate(graph, captured, 0);
    error = error ? error : cudaGraphUpload(*graph, lane->stream);
    if (captured) {
        cudaGraphDestroy(captured);
    }
    return error;
}

/* Every kernel that a later call may launch is launched once, on the spare slot: the driver loads code, and takes
 * memory for it, when it is first used, and which kernel runs depends on the number of rows. `least` is the first. */
int warm_up(struct cuda *cuda, struct lane *lane, int least)
{
    struct part *part = &cuda->parts[0];
    for (int row = 0; row < ROWS; row++) {
        record_at(cuda, row)->slot = cuda->streams;
        record_at(cuda, row)->elapsed = 1;
        cuda->rows[row] = {record_at(cuda, row)->samples, output_at(cuda, row), cuda->streams, 1};
    }
    part->first = 0;
    part->rows = 1;
    part->direct = true;
    if (check(cuda, launch_part(cuda, part, lane, false, nullptr), "its first hop")) {
        return -1;
    }
    part->direct = false;
    for (part->rows = least; part->rows <= ROWS; part->rows *= 2) {
        if (part->rows <= STEP_PART && part->rows < 2 * cuda->streams &&
            check(cuda, launch_part(cuda, part, lane, false, nullptr), "its first batch")) {
            return -1;
        }
        if (part->rows <= SEQUENCE_PART &&
            check(cuda, launch_part(cuda, part, lane, true, nullptr), "its first recording")) {
            return -1;
        }
    }
    return check(cuda, cudaStreamSynchronize(lane->stream), "its first batches");
}

/* The graphs for as many rows as there can be, each run once. */
int open_graphs(struct cuda *cuda)
{
    struct lane *lane = &cuda->lanes[0];
    while (cuda->buckets < BUCKETS && (cuda->buckets == 0 || 1 << (cuda->buckets - 1) < cuda->streams)) {
        const int rows = 1 << cuda->buckets;
        if (check(cuda, capture(cuda, rows, &cuda->graphs[cuda->buckets++]), "capturing a step") ||
            check(cuda, cudaGraphLaunch(cuda->graphs[cuda->buckets - 1], lane->stream), "its first step")) {
            return -1;
        }
        cuda->launched++;
        if (wait_done(cuda)) {
            return -1;
        }
    }
    return 0;
}

int open_lanes(struct cuda *cuda, struct ssm_error *err)
{
    if (check(cuda, open_events(cuda), "opening events")) {
        return refuse_fault(cuda, err);
    }
    for (struct lane &lane : cuda->lanes) {
        const int least = &lane == cuda->lanes ? 1 : STEP_PART; /* code needs it once, a stream's own memory often */
        if (check(cuda, open_lane(&lane), "opening streams") || warm_up(cuda, &lane, least)) {
            return refuse_fault(cuda, err);
        }
    }
    return check(cuda, open_aside(cuda), "opening copies") || open_graphs(cuda) ? refuse_fault(cuda, err) : 0;
}

/* 0, or -1 and an error. */
int parse_precision(const char *name, int *precision, bool *state_bf16, struct ssm_error *err)
{
    static const struct {
        const char *name;
        int precision;
        bool state_bf16;
    } table[] = {{"auto", PRECISION_FP32, false},
                 {"fp32", PRECISION_FP32, false},
                 {"tf32", PRECISION_TF32, false},
                 {"bf16", PRECISION_BF16, false},
                 {"bf16-state", PRECISION_BF16, true}};
    for (const auto &row : table) {
        if (!strcmp(name ? name : "auto", row.name)) {
            *precision = row.precision;
            *state_bf16 = row.state_bf16;
            return 0;
        }
    }
    return refuse(err, 64, "precision \"%.20s\" is not one of: auto, fp32, tf32, bf16, bf16-state", name);
}

void close_lane(struct lane *lane)
{
    if (lane->stream) {
        cudaStreamSynchronize(lane->stream);
        cudaStreamDestroy(lane->stream);
    }
    if (lane->computed) {
        cudaEventDestroy(lane->computed);
    }
}

void close_events(struct cuda *cuda)
{
    for (cudaEvent_t event : {cuda->begun, cuda->gathered, cuda->copied}) {
        if (event) {
            cudaEventDestroy(event);
        }
    }
    for (size_t i = 0; cuda->parts && i < cuda->room / STEP_PART; i++) {
        if (cuda->parts[i].delivered) {
            cudaEventDestroy(cuda->parts[i].delivered);
        }
    }
}

void close_gpu(struct cuda *cuda)
{
    if (cuda->device >= 0) {
        cudaSetDevice(cuda->device);
    }
    for (struct lane &lane : cuda->lanes) {
        close_lane(&lane);
    }
    if (cuda->aside) {
        cudaStreamSynchronize(cuda->aside);
        cudaStreamDestroy(cuda->aside);
    }
    close_events(cuda);
    for (int i = 0; i < cuda->buckets; i++) {
        if (cuda->graphs[i]) {
            cudaGraphExecDestroy(cuda->graphs[i]);
        }
    }
    for (int i = 0; i < cuda->n_reaches; i++) {
        if (cuda->reaches[i].pinned_here) {
            cudaHostUnregister(const_cast<char *>(cuda->reaches[i].memory));
        }
    }
    cudaFree(cuda->gpu_memory);
    cudaFreeHost(cuda->pinned_memory);
    chain_destroy(cuda->chain);
}

void cuda_close(struct backend *backend)
{
    struct cuda *cuda = of(backend);
    if (!cuda) {
        return;
    }
    if (!cuda->hangs) { /* else each of these calls could wait for ever, and the GPU may yet write to that memory */
        close_gpu(cuda);
    }
    team_destroy(cuda->team);
    free(cuda->parts);
    free(cuda->picked);
    free(cuda);
}

int open_all(struct cuda *cuda, const struct ssm_options *options, struct ssm_error *err)
{
    struct backend_cuda_device device;
    int precision = PRECISION_FP32;
    bool state_bf16 = false;
    if (parse_precision(options->precision, &precision, &state_bf16, err) ||
        (cuda->device = device_open(options->device, &device, err)) < 0) {
        return -1;
    }
    cuda->pairs = precision < PRECISION_FP32; /* whose step is one launch, mamba_stack.h's */
    snprintf(cuda->base.device, sizeof cuda->base.device, "cuda:%d %.40s", cuda->device, device.name);
    cuda->picked = static_cast<int *>(calloc(size_t(cuda->streams), sizeof *cuda->picked));
    cuda->parts = static_cast<struct part *>(calloc(cuda->room / STEP_PART, sizeof *cuda->parts));
    cuda->team = cuda->threads > 1 ? team_create(cuda->threads, TEAM_BRIEFLY) : nullptr;
    if (!cuda->picked || !cuda->parts || (cuda->threads > 1 && !cuda->team)) {
        return refuse_memory(err);
    }
    return take_memory(cuda, precision, state_bf16, device.bytes_free, err) ? -1 : open_lanes(cuda, err);
}

extern const struct backend_ops ops;

/* Rows of the largest call, in whole parts of a step. */
size_t room_for(int streams)
{
    const int parts = std::max(SCAN_PARTS * SEQUENCE_PART / STEP_PART, (streams + STEP_PART - 1) / STEP_PART);
    return size_t(parts) * STEP_PART;
}

int copies_at_once(const struct model *model, int streams)
{
    const size_t most = 1 + COPY_BYTES / ((model->state + 1) * sizeof(float));
    return int(std::min(size_t(1 + streams / COPY_SHARE), most));
}

struct backend *cuda_open(const struct model *model, const struct ssm_options *options, struct ssm_error *err)
{
    struct cuda *cuda = static_cast<struct cuda *>(calloc(1, sizeof *cuda));
    if (!cuda) {
        refuse_memory(err);
        return nullptr;
    }
    cuda->base.ops = &ops;
    cuda->base.scan_hops = SCAN_PARTS * SEQUENCE_PART;
    cuda->model = model;
    cuda->device = -1;
    cuda->streams = options->streams;
    cuda->room = room_for(options->streams);
    cuda->patience_s = OPEN_PATIENCE_S;
    cuda->threads = std::min(options->threads, +HELPERS);
    cuda->base.checks = true;
    cuda->base.copies = copies_at_once(model, options->streams);
    if (open_all(cuda, options, err)) {
        cuda_close(&cuda->base);
        return nullptr;
    }
    cuda->patience_s = options->patience_s > 0 ? std::min(options->patience_s, float(PATIENCE_MOST_S)) : 1;
    return &cuda->base;
}

const struct backend_ops ops = {"cuda",         cuda_open,      cuda_step,  cuda_scan,
                                cuda_state_get, cuda_state_put, cuda_copy_begin, cuda_copy_end,
                                cuda_reach,     cuda_fault,     cuda_close};
const struct backend_cuda library = {&ops, device_list};

} /* namespace */

const struct backend_cuda *ssm_backend_cuda(int abi)
{
    return abi == BACKEND_CUDA_ABI ? &library : nullptr;
}
