/* SPDX-License-Identifier: MIT */
#include "model/backend_fleet.h"

#include <assert.h>
#include <math.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dsp/clock.h"
#include "model/refuse.h"
#include "model/team.h"

/* Copies take 1 / COPY_SHARE of a hop's time at most, and 1 ms; none is less than COPY_LEAST hops old. */
enum { COPY_SHARE = 20, COPY_MOST_NS = 1000000, COPY_LEAST = 16, ELAPSED_MAX = 1000000 };

/* Of a copy. Who takes it out of WAITING has it: the thread that carries, or the owner, who no longer wants it. */
enum { WAITING, CARRYING, CARRIED, FORGOTTEN };

/* States on their way to the standby. */
struct copy_set {
    int *slots;         /* (backend->copies)  the shard's   */
    float *ages;        /* (backend->copies)  as they were begun */
    atomic_int *stages; /* (backend->copies)                */
    int n;
    const float *states;
};

/* Copies that a device makes beside its steps, a set at a time: begun behind a step, seen to be there in a later one,
 * then carried to the standby by a thread of their own, while the device makes the next set. */
struct copies {
    struct copy_set sets[2], *begun, *carried; /* NULL: there is none */
    bool *under_way;                           /* (slots)  in one of them */
    atomic_int loaded, over;
    sem_t work; /* for the thread: something is loaded, or it is over */
    bool has_thread;
    pthread_t thread;
    pthread_mutex_t mutex; /* only who waits for a copy or a set takes it, and who carried that */
    pthread_cond_t done;
};

struct shard {
    struct fleet *fleet;
    int member;
    struct copies copies;
    struct backend *backend;
    struct backend_hop *hops; /* (slots)  its part of the step in progress, by its own slot numbers */
    int n;                    /* of them                                                         */
    float *age;               /* (slots)  time since the copy, hops; 0 on the standby, whose state is no copy */
    float *state;             /* (model->state)  on its way to the standby */
    float oldest, time;       /* age in the last step; time it stood for, of all */
    bool older;               /* ages are those behind the step in progress    */
    int cursor;               /* where in a batch the next copies are looked for */
    int void_hops;            /* of the step in progress                         */
    bool down;                /* a call failed: its own thread says so, the owner makes it `lost` between steps */
    bool lost;
};

struct fleet {
    struct backend base;
    const struct model *model;
    struct shard shards[FLEET_DEVICES];
    int n_shards, streams;
    int relief;        /* the member that steps the standby: the first lost one; -1: none is */
    struct team *team; /* NULL with one device */
    struct backend *standby;
    int64_t copy_ns;           /* time for copies in a step              */
    float due;                 /* hops after which a copy is made anew   */
    bool *moved;               /* (streams)  went over                                                          */
    struct backend_hop *parts; /* (streams)  the standby's part of a step */
    float *elapsed;            /* (streams)  their first hops'           */
    struct ssm_health health;

    fleet_share *share; /* makes the parts of the step in progress */
    void *share_arg;
};

static struct shard *shard_of(struct fleet *fleet, int slot)
{
    return &fleet->shards[slot % fleet->n_shards];
}

static float *age_of(struct fleet *fleet, int slot)
{
    return &shard_of(fleet, slot)->age[slot / fleet->n_shards];
}

/* Hops of time a part stands for. Comparisons, not fminf and fmaxf: those are calls, and this is asked of every stream.
 */
static float time_of(const struct backend_hop *hop)
{
    float time = 0;
    for (int i = 0; i < hop->count; i++) {
        float value = i < hop->elapsed_count ? hop->elapsed[i] : 1;
        value = value > ELAPSED_MAX ? ELAPSED_MAX : value;
        time += value > 0 ? value : 1;
    }
    return time;
}

/* ---- Copies beside the steps. ---- */

/* Something that may be waited for became this. */
static void tell_done(struct copies *copies, atomic_int *what, int value)
{
    pthread_mutex_lock(&copies->mutex);
    atomic_store(what, value);
    pthread_cond_signal(&copies->done);
    pthread_mutex_unlock(&copies->mutex);
}

static void wait_while(struct copies *copies, atomic_int *what, int value)
{
    pthread_mutex_lock(&copies->mutex);
    while (atomic_load(what) == value) {
        pthread_cond_wait(&copies->done, &copies->mutex);
    }
    pthread_mutex_unlock(&copies->mutex);
}

/* The owner's, or the thread's from now on. */
static bool take_copy(struct copy_set *set, int i, int stage)
{
    int waiting = WAITING;
    return atomic_compare_exchange_strong(&set->stages[i], &waiting, stage);
}

static void *carry(void *arg)
{
    struct shard *shard = arg;
    struct copies *copies = &shard->copies;
    struct backend *standby = shard->fleet->standby;
    for (;;) {
        while (sem_wait(&copies->work)) {
        }
        if (atomic_load(&copies->over)) {
            return NULL;
        }
        struct copy_set *set = copies->carried;
        for (int i = 0; i < set->n; i++) {
            if (take_copy(set, i, CARRYING)) {
                standby->ops->state_put(standby, set->slots[i] * shard->fleet->n_shards + shard->member,
                                        set->states + (size_t)i * shard->fleet->model->state);
                tell_done(copies, &set->stages[i], CARRIED);
            }
        }
        tell_done(copies, &copies->loaded, false);
    }
}

/* Those carried, if any: once they are with the standby, they count. */
static void arrive(struct shard *shard)
{
    struct copies *copies = &shard->copies;
    struct copy_set *set = copies->carried;
    if (!set || atomic_load(&copies->loaded)) {
        return;
    }
    for (int i = 0; i < set->n; i++) {
        if (atomic_load(&set->stages[i]) == CARRIED) {
            shard->age[set->slots[i]] -= set->ages[i];
            copies->under_way[set->slots[i]] = false;
        }
    }
    copies->carried = NULL;
}

static void load(struct copies *copies)
{
    copies->carried = copies->begun;
    copies->begun = NULL;
    atomic_store(&copies->loaded, true);
    sem_post(&copies->work);
}

static void forget_in(struct copies *copies, struct copy_set *set, int slot)
{
    for (int i = 0; set && i < set->n; i++) {
        if (set->slots[i] == slot && atomic_load(&set->stages[i]) != FORGOTTEN) {
            if (!take_copy(set, i, FORGOTTEN)) {
                wait_while(copies, &set->stages[i], CARRYING);
                atomic_store(&set->stages[i], FORGOTTEN);
            }
            copies->under_way[slot] = false;
        }
    }
}

/* A slot's state changes otherwise: no copy from before may come after that. Waits for that one copy at most. */
static void forget_copy(struct shard *shard, int slot)
{
    struct copies *copies = &shard->copies;
    if (copies->has_thread && copies->under_way[slot]) {
        forget_in(copies, copies->begun, slot);
        forget_in(copies, copies->carried, slot);
    }
}

/* Those of a batch that are due, going round from where the copies before ended. */
static void begin_copies(struct shard *shard, const struct backend_hop *hops, int n)
{
    struct copies *copies = &shard->copies;
    struct copy_set *set = &copies->sets[copies->carried == copies->sets];
    int at = shard->cursor < n ? shard->cursor : 0;
    set->n = 0;
    for (int i = 0; i < n && set->n < shard->backend->copies; i++, at = at + 1 < n ? at + 1 : 0) {
        int slot = hops[at].slot;
        if (shard->age[slot] >= shard->fleet->due && !copies->under_way[slot]) {
            set->slots[set->n] = slot;
            set->ages[set->n] = shard->age[slot];
            atomic_store(&set->stages[set->n++], WAITING);
            copies->under_way[slot] = true;
        }
    }
    shard->cursor = at;
    if (set->n > 0) {
        shard->down = shard->backend->ops->copy_begin(shard->backend, set->slots, set->n) < 0;
        copies->begun = set;
    }
}

/* Of a step, while the device is at it and behind it. */
static void move_copies(struct shard *shard, const struct backend_hop *hops, int n)
{
    struct copies *copies = &shard->copies;
    arrive(shard);
    if (copies->begun && !copies->carried) {
        int there = shard->backend->ops->copy_end(shard->backend, &copies->begun->states);
        shard->down = there < 0;
        if (there > 0) {
            load(copies);
        }
    }
    if (!copies->begun && !shard->down) {
        begin_copies(shard, hops, n);
    }
}

static void init_copies(struct copies *copies)
{
    sem_init(&copies->work, 0, 0);
    pthread_mutex_init(&copies->mutex, NULL);
    pthread_cond_init(&copies->done, NULL);
}

static int open_copies(struct shard *shard, int slots, struct ssm_error *err)
{
    struct copies *copies = &shard->copies;
    size_t most = (size_t)shard->backend->copies;
    bool fine = (copies->under_way = calloc((size_t)slots, sizeof *copies->under_way));
    for (int i = 0; i < 2; i++) {
        struct copy_set *set = &copies->sets[i];
        set->slots = calloc(most, sizeof *set->slots);
        set->ages = calloc(most, sizeof *set->ages);
        set->stages = calloc(most, sizeof *set->stages);
        fine = fine && set->slots && set->ages && set->stages;
    }
    if (!fine) {
        return refuse_memory(err);
    }
    copies->has_thread = team_thread(&copies->thread, carry, shard);
    return copies->has_thread ? 0 : refuse(err, 71, "can't start a thread");
}

static void finish_copies(struct copies *copies)
{
    if (copies->has_thread) {
        atomic_store(&copies->over, true);
        sem_post(&copies->work);
        pthread_join(copies->thread, NULL);
    }
    for (int i = 0; i < 2; i++) {
        free(copies->sets[i].slots);
        free(copies->sets[i].ages);
        free(copies->sets[i].stages);
    }
    free(copies->under_way);
    sem_destroy(&copies->work);
    pthread_mutex_destroy(&copies->mutex);
    pthread_cond_destroy(&copies->done);
}

/* ---- Copies one by one. ---- */

/* Bring a stream's state to the standby. */
static int copy_state(struct fleet *fleet, int slot)
{
    struct shard *shard = shard_of(fleet, slot);
    forget_copy(shard, slot / fleet->n_shards);
    if (shard->backend->ops->state_get(shard->backend, slot / fleet->n_shards, shard->state) < 0) {
        shard->down = true;
        return -1;
    }
    fleet->standby->ops->state_put(fleet->standby, slot, shard->state);
    *age_of(fleet, slot) = 0;
    return 0;
}

/* Copy those of a batch that are due, going round from where the last step's copies ended. With as many as bring each
 * stream's turn within `due` hops after it became due, all are done before they are twice that old. */
static void copy_due(struct fleet *fleet, int member, const struct backend_hop *hops, int n, float time)
{
    struct shard *shard = &fleet->shards[member];
    int64_t until = 0;
    int most = 1 + (int)(time / fleet->due), at = shard->cursor < n ? shard->cursor : 0;
    for (int i = 0; i < n && most > 0; i++, at = at + 1 < n ? at + 1 : 0) {
        if (shard->age[hops[at].slot] < fleet->due) {
            continue;
        }
        int64_t now = clock_now();
        until = until ? until : now + fleet->copy_ns;
        if (now > until || copy_state(fleet, hops[at].slot * fleet->n_shards + member) < 0) {
            break;
        }
        most--;
    }
    shard->cursor = at;
}

/* ---- A step. ---- */

/* What a device said when it failed, behind what others said in the same call. */
static void note_words(struct fleet *fleet, const struct shard *shard, bool first)
{
    const char *words = shard->backend->ops->fault(shard->backend), *device = shard->backend->device;
    size_t at = first ? 0 : strlen(fleet->health.last);
    snprintf(fleet->health.last + at, sizeof fleet->health.last - at, "%s%.*s: %.160s", first ? "" : "; ",
             (int)strcspn(device, " "), device, words ? words : "failed without a word");
}

/* Owner, between steps: who failed is lost. */
static void settle(struct fleet *fleet)
{
    bool first = true;
    for (int i = 0; i < fleet->n_shards; i++) {
        struct shard *shard = &fleet->shards[i];
        if (shard->down && !shard->lost) {
            note_words(fleet, shard, first);
            first = false;
            shard->lost = true;
            wait_while(&shard->copies, &shard->copies.loaded, true);
            arrive(shard);
            shard->copies.begun = NULL;
            fleet->base.checks = false; /* the processor doesn't */
            fleet->health.faults++;
            fleet->relief = fleet->relief < 0 || i < fleet->relief ? i : fleet->relief;
        }
    }
}

/* The parts of a device's slots. */
static void take_share(struct fleet *fleet, struct shard *shard)
{
    shard->n = fleet->share(fleet->share_arg, shard->member, fleet->n_shards, shard->hops);
}

static void grow_older(struct shard *shard)
{
    float time = 0, oldest = 0;
    for (int i = 0; i < shard->n; i++) {
        float passed = time_of(&shard->hops[i]), *age = &shard->age[shard->hops[i].slot];
        *age += passed;
        oldest = *age > oldest ? *age : oldest;
        time += passed;
    }
    shard->time = time;
    shard->oldest = shard->fleet->standby ? oldest : 0;
    shard->older = true;
}

static void keep_copies(struct shard *shard)
{
    if (shard->fleet->standby && !shard->down && shard->copies.has_thread) {
        move_copies(shard, shard->hops, shard->n);
    }
}

/* While the device works. */
static void care(void *arg)
{
    struct shard *shard = arg;
    grow_older(shard);
    keep_copies(shard);
}

static void step_shard(struct fleet *fleet, struct shard *shard)
{
    const struct backend_hop *hops = shard->hops;
    int n = shard->n;
    if (n == 0) {
        return;
    }
    shard->older = false;
    bool failed = shard->backend->ops->step(shard->backend, hops, n) < 0;
    shard->down = shard->down || failed;
    if (!shard->older) {
        grow_older(shard);
    }
    keep_copies(shard); /* again: those that weren't there before, with steps close by each other */
    for (int i = 0; i < n && failed; i++) {
        shard->void_hops += hops[i].count;
    }
    if (fleet->standby && !shard->down && !shard->copies.has_thread) {
        copy_due(fleet, shard->member, hops, n, shard->time);
    }
}

/* A stream's part as the standby takes it: time passed since the copy. */
static struct backend_hop move_part(struct fleet *fleet, const struct backend_hop *hop, float *elapsed)
{
    struct backend_hop part = *hop;
    float first = hop->elapsed_count > 0 ? hop->elapsed[0] : 1;
    assert(hop->elapsed_count <= 1);
    *elapsed = (first > 0 ? first : 1) + *age_of(fleet, hop->slot);
    part.elapsed = elapsed;
    part.elapsed_count = 1;
    *age_of(fleet, hop->slot) = 0;
    fleet->health.moved += !fleet->moved[hop->slot];
    fleet->moved[hop->slot] = true;
    return part;
}

/* What lost devices would have stepped. */
static void step_standby(struct fleet *fleet)
{
    int n = 0;
    for (int k = 0; k < fleet->n_shards; k++) {
        struct shard *shard = &fleet->shards[k];
        if (!shard->lost) {
            continue;
        }
        take_share(fleet, shard);
        for (int i = 0; i < shard->n; i++) {
            struct backend_hop hop = shard->hops[i];
            hop.slot = hop.slot * fleet->n_shards + k;
            if (fleet->standby) {
                fleet->parts[n] = move_part(fleet, &hop, &fleet->elapsed[n]);
                n++;
            } else {
                shard->void_hops += hop.count;
            }
        }
    }
    if (n > 0) {
        fleet->standby->ops->step(fleet->standby, fleet->parts, n);
    }
}

static void step_member(void *arg, int member)
{
    struct fleet *fleet = arg;
    struct shard *shard = &fleet->shards[member];
    if (!shard->lost) {
        take_share(fleet, shard);
        step_shard(fleet, shard);
    }
    if (member == fleet->relief) {
        step_standby(fleet);
    }
}

int backend_fleet_step(struct backend *backend, fleet_share *share, void *arg)
{
    struct fleet *fleet = (struct fleet *)backend;
    int voided = 0;
    fleet->share = share;
    fleet->share_arg = arg;
    for (int i = 0; i < fleet->n_shards; i++) {
        fleet->shards[i].void_hops = 0;
        fleet->shards[i].backend->blown = false;
    }
    if (fleet->team) {
        team_run(fleet->team, fleet->n_shards, step_member, fleet);
    } else {
        step_member(fleet, 0);
    }
    for (int i = 0; i < fleet->n_shards; i++) {
        voided += fleet->shards[i].void_hops;
        backend->blown = backend->blown || fleet->shards[i].backend->blown;
        backend->lingers = backend->lingers || fleet->shards[i].backend->lingers;
    }
    fleet->health.failed_hops += (uint64_t)voided;
    settle(fleet);
    return voided > 0 ? -1 : 0;
}

const struct backend_hop *backend_fleet_parts(const struct backend *backend, int device, int *n, bool *voided)
{
    const struct fleet *fleet = (const struct fleet *)backend;
    if (device >= fleet->n_shards) {
        return NULL;
    }
    const struct shard *shard = &fleet->shards[device];
    *n = shard->n;
    *voided = shard->void_hops > 0;
    return shard->hops;
}

int backend_fleet_device(const struct backend *backend, int slot)
{
    const struct fleet *fleet = (const struct fleet *)backend;
    int i = slot % fleet->n_shards;
    return fleet->shards[i].lost ? -1 : i;
}

/* ---- A scan. ---- */

/* A backend's scan over more hops than it likes at once. */
static int scan_pieces(struct backend *backend, const struct backend_hop *hop, const struct model *model)
{
    for (int done = 0; done < hop->count;) {
        struct backend_hop piece = *hop;
        int left = hop->count - done, used = done < hop->elapsed_count ? done : hop->elapsed_count;
        piece.in += (size_t)done * (size_t)model->info.inputs;
        piece.out += (size_t)done * (size_t)model->info.outputs;
        piece.count = left < backend->scan_hops ? left : backend->scan_hops;
        piece.elapsed = hop->elapsed ? hop->elapsed + used : NULL;
        piece.elapsed_count = hop->elapsed_count - used < piece.count ? hop->elapsed_count - used : piece.count;
        if (backend->ops->scan(backend, &piece) < 0) {
            return -1;
        }
        done += piece.count;
    }
    return 0;
}

/* The first hop by itself where time has passed since the copy. */
static int scan_standby(struct fleet *fleet, const struct backend_hop *hop)
{
    struct backend_hop first = *hop, rest = *hop;
    float elapsed;
    first.count = 1;
    first.elapsed_count = hop->elapsed_count > 0 ? 1 : 0;
    bool old = *age_of(fleet, hop->slot) > 0;
    first = move_part(fleet, &first, &elapsed);
    if (!old) {
        return scan_pieces(fleet->standby, hop, fleet->model);
    }
    rest.count--;
    rest.in += fleet->model->info.inputs;
    rest.out += fleet->model->info.outputs;
    rest.elapsed = hop->elapsed_count > 1 ? hop->elapsed + 1 : NULL;
    rest.elapsed_count = hop->elapsed_count > 1 ? hop->elapsed_count - 1 : 0;
    scan_pieces(fleet->standby, &first, fleet->model);
    return scan_pieces(fleet->standby, &rest, fleet->model);
}

/* On the device, and its end state on the standby: only both together count. */
static int scan_device(struct fleet *fleet, const struct backend_hop *hop)
{
    struct shard *shard = shard_of(fleet, hop->slot);
    struct backend_hop part = *hop;
    part.slot /= fleet->n_shards;
    if (scan_pieces(shard->backend, &part, fleet->model) < 0) {
        shard->down = true;
        return -1;
    }
    return fleet->standby ? copy_state(fleet, hop->slot) : 0;
}

static int fleet_scan(struct backend *backend, const struct backend_hop *hop)
{
    struct fleet *fleet = (struct fleet *)backend;
    struct shard *shard = shard_of(fleet, hop->slot);
    shard->void_hops = 0;
    if (!shard->lost) {
        bool stale = fleet->standby && *age_of(fleet, hop->slot) > 0 && copy_state(fleet, hop->slot) < 0;
        if (!stale && scan_device(fleet, hop) == 0) {
            return 0;
        }
        settle(fleet);
        *age_of(fleet, hop->slot) += stale ? time_of(hop) : 0;
        shard->void_hops = stale || !fleet->standby ? hop->count : 0;
    } else if (!fleet->standby) {
        shard->void_hops = hop->count;
    }
    fleet->health.failed_hops += (uint64_t)shard->void_hops;
    return shard->void_hops > 0 ? -1 : scan_standby(fleet, hop);
}

/* ---- States. ---- */

static int fleet_state_get(struct backend *backend, int slot, float *state)
{
    struct fleet *fleet = (struct fleet *)backend;
    struct shard *shard = shard_of(fleet, slot);
    if (shard->lost) {
        return fleet->standby ? fleet->standby->ops->state_get(fleet->standby, slot, state) : -1;
    }
    shard->down = shard->backend->ops->state_get(shard->backend, slot / fleet->n_shards, state) < 0;
    settle(fleet);
    return shard->down ? -1 : 0;
}

static int fleet_state_put(struct backend *backend, int slot, const float *state)
{
    struct fleet *fleet = (struct fleet *)backend;
    struct shard *shard = shard_of(fleet, slot);
    forget_copy(shard, slot / fleet->n_shards);
    if (fleet->standby) {
        fleet->standby->ops->state_put(fleet->standby, slot, state);
    }
    *age_of(fleet, slot) = 0;
    fleet->moved[slot] = shard->lost;
    if (!shard->lost) {
        shard->down = shard->backend->ops->state_put(shard->backend, slot / fleet->n_shards, state) < 0;
        settle(fleet);
    }
    return shard->lost && !fleet->standby ? -1 : 0;
}

/* Pinned by the first that can. */
static int fleet_reach(struct backend *backend, void *memory, size_t bytes, bool pinned)
{
    struct fleet *fleet = (struct fleet *)backend;
    for (int i = 0; i < fleet->n_shards; i++) {
        struct shard *shard = &fleet->shards[i];
        if (!shard->lost && shard->backend->ops->reach) {
            pinned = shard->backend->ops->reach(shard->backend, memory, bytes, pinned) == 0 || pinned;
        }
    }
    return pinned ? 0 : -1;
}

/* ---- What there is to say. ---- */

static const char *fleet_fault(const struct backend *backend)
{
    const struct fleet *fleet = (const struct fleet *)backend;
    return fleet->health.faults > 0 ? fleet->health.last : NULL;
}

const struct ssm_health *backend_fleet_health(const struct backend *backend)
{
    return &((const struct fleet *)backend)->health;
}

static struct ssm_spent spent_of(const struct backend_spent *spent)
{
    return (struct ssm_spent){.first = 1e-9 * (double)(spent->first - spent->start),
                              .feed = 1e-9 * (double)(spent->all - spent->first),
                              .wait = 1e-9 * (double)(spent->back - spent->all),
                              .hand = 1e-9 * (double)(spent->done - spent->back),
                              .busy = 1e-9 * (double)spent->device};
}

bool backend_fleet_describe(const struct backend *backend, int i, struct ssm_device_info *info)
{
    const struct fleet *fleet = (const struct fleet *)backend;
    if (i < 0 || i >= fleet->n_shards) {
        return false;
    }
    const struct shard *shard = &fleet->shards[i];
    *info = (struct ssm_device_info){.bytes = shard->backend->device_bytes,
                                     .lost = shard->lost,
                                     .copy_s = (double)(shard->oldest * (float)fleet->model->info.hop) /
                                               fleet->model->info.rate,
                                     .spent = spent_of(&shard->backend->spent)};
    snprintf(info->name, sizeof info->name, "%s", shard->backend->device);
    return true;
}

/* ---- Opening. ---- */

static void fleet_close(struct backend *backend)
{
    struct fleet *fleet = (struct fleet *)backend;
    if (!fleet) {
        return;
    }
    team_destroy(fleet->team);
    for (int i = 0; i < fleet->n_shards; i++) {
        struct shard *shard = &fleet->shards[i];
        finish_copies(&shard->copies);
        if (shard->backend) {
            shard->backend->ops->close(shard->backend);
        }
        free(shard->hops);
        free(shard->age);
        free(shard->state);
    }
    if (fleet->standby) {
        fleet->standby->ops->close(fleet->standby);
    }
    free(fleet->moved);
    free(fleet->parts);
    free(fleet->elapsed);
    free(fleet);
}

static const struct backend_ops backend_fleet = {.name =
                                                     "fleet", /* opened by backend_fleet_open, from a list; no .step */
                                                 .scan = fleet_scan,
                                                 .state_get = fleet_state_get,
                                                 .state_put = fleet_state_put,
                                                 .reach = fleet_reach,
                                                 .fault = fleet_fault,
                                                 .close = fleet_close};

static int open_shard(struct fleet *fleet, struct shard *shard, const struct ssm_options *options,
                      const struct fleet_device *device, struct ssm_error *err)
{
    struct ssm_options part = *options;
    part.device = device->name;
    part.streams = (options->streams + fleet->n_shards - 1) / fleet->n_shards;
    shard->fleet = fleet;
    shard->member = (int)(shard - fleet->shards);
    shard->backend = device->ops->open(fleet->model, &part, err);
    if (!shard->backend) {
        return -1;
    }
    shard->backend->meanwhile = care;
    shard->backend->meanwhile_arg = shard;
    shard->hops = calloc((size_t)part.streams, sizeof *shard->hops);
    shard->age = calloc((size_t)part.streams, sizeof *shard->age);
    shard->state = calloc(fleet->model->state + 1, sizeof *shard->state);
    fleet->base.bytes += shard->backend->bytes + (size_t)part.streams * sizeof *shard->hops;
    fleet->base.scan_hops =
        shard->backend->scan_hops > fleet->base.scan_hops ? shard->backend->scan_hops : fleet->base.scan_hops;
    return shard->hops && shard->age && shard->state ? 0 : refuse_memory(err);
}

static int open_standby(struct fleet *fleet, const struct ssm_options *options, struct ssm_error *err)
{
    const struct ssm_info *info = &fleet->model->info;
    size_t streams = (size_t)fleet->streams;
    int slots = (fleet->streams + fleet->n_shards - 1) / fleet->n_shards;
    float copy_s = options->copy_s > 0 ? options->copy_s : 1;
    double share_ns = 1e9 * info->hop / info->rate / COPY_SHARE;
    fleet->due = fmaxf(0.5f * copy_s * (float)info->rate / (float)info->hop, COPY_LEAST);
    fleet->copy_ns = (int64_t)fmin(share_ns, COPY_MOST_NS);
    fleet->moved = calloc(streams, sizeof *fleet->moved);
    fleet->parts = calloc(streams, sizeof *fleet->parts);
    fleet->elapsed = calloc(streams, sizeof *fleet->elapsed);
    if (!fleet->moved || !fleet->parts || !fleet->elapsed) {
        return refuse_memory(err);
    }
    if (options->copy_s >= 0) {
        fleet->standby = backend_cpu.open(fleet->model, options, err);
        fleet->base.bytes += fleet->standby ? fleet->standby->bytes : 0;
    }
    bool fine = fleet->standby || options->copy_s < 0;
    for (int i = 0; i < fleet->n_shards && fine && fleet->standby; i++) {
        fine = fleet->shards[i].backend->copies == 0 || open_copies(&fleet->shards[i], slots, err) == 0;
    }
    return fine ? 0 : -1;
}

static void name_devices(struct fleet *fleet)
{
    const char *first = fleet->shards[0].backend->device;
    char *name = fleet->base.device;
    if (fleet->n_shards == 1) {
        snprintf(name, sizeof fleet->base.device, "%s", first);
    } else {
        snprintf(name, sizeof fleet->base.device, "%.40s and %d more", first, fleet->n_shards - 1);
    }
}

struct backend *backend_fleet_open(const struct model *model, const struct ssm_options *options,
                                   const struct fleet_device *devices, int n, struct ssm_error *err)
{
    assert(n >= 1 && n <= FLEET_DEVICES);
    struct fleet *fleet = calloc(1, sizeof *fleet);
    if (!fleet) {
        refuse_memory(err);
        return NULL;
    }
    fleet->base.ops = &backend_fleet;
    fleet->base.bytes = sizeof *fleet;
    fleet->model = model;
    fleet->n_shards = n;
    fleet->streams = options->streams;
    fleet->relief = -1;
    for (int i = 0; i < n; i++) {
        init_copies(&fleet->shards[i].copies);
    }
    for (int i = 0; i < n; i++) {
        if (open_shard(fleet, &fleet->shards[i], options, &devices[i], err) < 0) {
            goto fail;
        }
    }
    if (open_standby(fleet, options, err) < 0) {
        goto fail;
    }
    if (n > 1 && !(fleet->team = team_create(n, TEAM_PATIENTLY))) {
        refuse_memory(err);
        goto fail;
    }
    name_devices(fleet);
    fleet->base.checks = true;
    for (int i = 0; i < n; i++) {
        fleet->base.checks &= fleet->shards[i].backend->checks;
    }
    return &fleet->base;
fail:
    fleet_close(&fleet->base);
    return NULL;
}
