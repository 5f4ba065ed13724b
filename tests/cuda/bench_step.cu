/* SPDX-License-Identifier: MIT */

/* The streaming step of Mamba layers on the GPU: is it right, and how fast. A program of its own:
 *
 *   nvcc -O3 -std=c++17 -arch=sm_90 -I. tests/cuda/bench_step.cu kernels/cuda/{linear,mamba_step,mamba_stack,mamba_team}.cu
 *   bench_step [--check | --time | --profile] [--json FILE] [--rows N]
 *
 * Checks, on random weights, states, phases and gaps, slots shuffled: against the same block in double; a stream's bits
 * in batches of 1 to --rows (4096) and on the plain path; slots outside the batch stay as they are.
 * Times a stack of 4 layers (d_model 256, expand 2, d_state 16, d_conv 4) by replay of graphs, beside the copy ceiling
 * of the same run and the floor, the bytes of the states over that ceiling; --rows: of that many streams only.
 * --profile runs two steps of --rows streams, for a profiler. */

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/cuda/mamba_stack.h"
#include "kernels/cuda/mamba_team.h"
#include "tests/cuda/random.cuh"

namespace {

using doubles = std::vector<double>;

/* ---- a layer ------------------------------------------------------------------------------------------------- */

struct sizes {
    int D, E, N, K, R;
};

struct matrix {
    int in, out;
    floats weight, scale, bias; /* scale, bias may be empty */

    double at(int o, int k) const
    {
        const double w = weight[size_t(o) * size_t(in) + size_t(k)];
        return scale.empty() ? w : w * double(scale[size_t(o)]);
    }
};

struct layer {
    sizes s;
    matrix in_proj, x_proj, dt_proj, out_proj;
    floats norm, conv_weight, conv_bias, A, skip;
};

matrix random_matrix(int in, int out, bool int8)
{
    matrix m = {in, out, random_floats(size_t(in) * size_t(out), -1, 1), {}, {}};
    const double bound = 1 / sqrt(double(in));
    for (float &w : m.weight)
        w = int8 ? float(rint(127 * double(w))) : float(bound * double(w));
    if (int8)
        m.scale = random_floats(size_t(out), 0.8 * bound / 127, 1.2 * bound / 127);
    return m;
}

/* As a trained layer's numbers lie: dt from 0.001 to 0.1, A about -1 ... -N. */
layer random_layer(const sizes &s, bool int8)
{
    layer l = {s, random_matrix(s.D, 2 * s.E, int8), random_matrix(s.E, s.R + 2 * s.N, int8), random_matrix(s.R, s.E, int8),
               random_matrix(s.E, s.D, int8), random_floats(size_t(s.D), 0.5, 1.5),
               random_floats(size_t(s.K * s.E), -0.6, 0.6), random_floats(size_t(s.E), -0.2, 0.2),
               floats(size_t(s.N * s.E)), random_floats(size_t(s.E), 0.5, 1.5)};
    for (int i = 0; i < s.N * s.E; i++)
        l.A[size_t(i)] = float(-(i / s.E + 1) * uniform(0.5, 1.5));
    for (int e = 0; e < s.E; e++)
        l.dt_proj.bias.push_back(float(log(expm1(exp(uniform(log(1e-3), log(0.1)))))));
    return l;
}

struct linear_cuda upload(const matrix &m, int pieces)
{
    std::vector<unsigned char> packed(linear_cuda_bytes(m.in, m.out, pieces));
    linear_cuda_pack(packed.data(), m.in, m.out, pieces, m.weight.data(), m.scale.empty() ? nullptr : m.scale.data(),
                     m.bias.empty() ? nullptr : m.bias.data());
    return linear_cuda_at(device_copy(packed), m.in, m.out, pieces);
}

mamba_cuda upload(const layer &l, int pieces, bool zoh, int64_t state_at)
{
    const sizes &s = l.s;
    return {s.D, s.E, s.N, s.K, s.R, zoh, upload(l.in_proj, pieces), upload(l.x_proj, pieces), upload(l.dt_proj, pieces),
            upload(l.out_proj, pieces), device_copy(l.norm), device_copy(l.conv_weight), device_copy(l.conv_bias),
            device_copy(l.A), device_copy(l.skip), state_at};
}

/* ---- the reference ------------------------------------------------------------------------------------------- */

doubles product(const matrix &m, const doubles &x)
{
    doubles y(size_t(m.out));
    for (int o = 0; o < m.out; o++) {
        for (int k = 0; k < m.in; k++)
            y[size_t(o)] += m.at(o, k) * x[size_t(k)];
        y[size_t(o)] += m.bias.empty() ? 0 : double(m.bias[size_t(o)]);
    }
    return y;
}

double silu(double x) { return x / (1 + exp(-x)); }
double softplus(double x) { return x > 20 ? x : log1p(exp(x)); }

/* history (K - 1, E), oldest first, and h (N, E) of one stream; x (D) in and out. */
void reference_step(const layer &l, bool zoh, double elapsed, double *history, double *h, double *x)
{
    const sizes &s = l.s;
    double squares = 0;
    for (int i = 0; i < s.D; i++)
        squares += x[i] * x[i];
    doubles normed(size_t(s.D));
    for (int i = 0; i < s.D; i++)
        normed[size_t(i)] = x[i] / sqrt(squares / s.D + 1e-5) * double(l.norm[size_t(i)]);
    const doubles xz = product(l.in_proj, normed);
    doubles u(size_t(s.E)), y(size_t(s.E));
    for (int e = 0; e < s.E; e++) {
        double sum = l.conv_bias[size_t(e)];
        for (int k = 0; k < s.K; k++)
            sum += double(l.conv_weight[size_t(k * s.E + e)]) * (k < s.K - 1 ? history[k * s.E + e] : xz[size_t(e)]);
        u[size_t(e)] = silu(sum);
        for (int k = 0; k + 1 < s.K; k++)
            history[k * s.E + e] = k + 2 < s.K ? history[(k + 1) * s.E + e] : xz[size_t(e)];
    }
    const doubles mixed = product(l.x_proj, u);
    const doubles dt = product(l.dt_proj, doubles(mixed.begin(), mixed.begin() + s.R));
    for (int e = 0; e < s.E; e++) {
        const double delta = elapsed * softplus(dt[size_t(e)]), ue = u[size_t(e)];
        double sum = double(l.skip[size_t(e)]) * ue;
        for (int n = 0; n < s.N; n++) {
            const double A = l.A[size_t(n * s.E + e)], gain = zoh ? expm1(delta * A) / A : delta;
            double &state = h[n * s.E + e];
            state = exp(delta * A) * state + gain * ue * mixed[size_t(s.R + n)];
            sum += mixed[size_t(s.R + s.N + n)] * state;
        }
        y[size_t(e)] = sum * silu(xz[size_t(s.E + e)]);
    }
    const doubles out = product(l.out_proj, y);
    for (int i = 0; i < s.D; i++)
        x[i] += out[size_t(i)];
}

/* ---- a stack of layers on the device -------------------------------------------------------------------------- */

struct options {
    sizes s;
    int layers, slots, precision;
    bool int8, state_bf16, zoh, plain;
};

struct stack {
    options how;
    std::vector<layer> host;
    std::vector<mamba_cuda> device;
    int64_t stride; /* elements a slot */
    void *states;
    uint32_t *phase;
    void *workspace[2];
};

size_t state_bytes(const stack &m) { return size_t(m.stride) * (m.how.state_bf16 ? 2 : 4); }

/* Random states in the device's own type; `values` gets them. */
void *random_states(bool bf16, size_t n, floats *values)
{
    floats v(1 << 20);
    for (float &x : v)
        x = float(uniform(-1, 1));
    std::vector<__nv_bfloat16> half(v.size());
    for (size_t i = 0; i < v.size(); i++) {
        half[i] = __float2bfloat16(v[i]);
        if (bf16)
            v[i] = __bfloat162float(half[i]);
    }
    char *states = nullptr;
    const size_t width = bf16 ? 2 : 4;
    must(cudaMalloc(&states, n * width), "cudaMalloc of states");
    for (size_t i = 0; i < n; i += v.size()) {
        const size_t count = std::min(n - i, v.size());
        const void *from = bf16 ? static_cast<const void *>(half.data()) : v.data();
        must(cudaMemcpy(states + i * width, from, count * width, cudaMemcpyHostToDevice), "cudaMemcpy");
        if (values)
            values->insert(values->end(), v.begin(), v.begin() + int64_t(count));
    }
    return states;
}

/* As they were before: what random_states gave. */
floats read_states(const stack &m)
{
    const size_t n = size_t(m.stride) * size_t(m.how.slots);
    if (!m.how.state_bf16)
        return host_copy(static_cast<float *>(m.states), n);
    floats v;
    for (const __nv_bfloat16 &x : host_copy(static_cast<__nv_bfloat16 *>(m.states), n))
        v.push_back(__bfloat162float(x));
    return v;
}

stack make_stack(const options &how, int rows, floats *states = nullptr, std::vector<uint32_t> *phases = nullptr)
{
    stack m = {how, {}, {}, 0, nullptr, nullptr, {}};
    const int pieces = how.int8 ? 1 : how.precision;
    for (int i = 0; i < how.layers; i++) {
        m.host.push_back(random_layer(how.s, how.int8));
        m.device.push_back(upload(m.host.back(), pieces, how.zoh, m.stride));
        m.stride += int64_t(mamba_cuda_state(&m.device.back()) + 7) / 8 * 8;
    }
    m.states = random_states(how.state_bf16, size_t(m.stride) * size_t(how.slots), states);
    std::vector<uint32_t> phase;
    for (int i = 0; i < how.slots; i++)
        phase.push_back(uint32_t(uniform(0, MAMBA_CUDA_PHASES)));
    m.phase = device_copy(phase);
    if (phases)
        *phases = phase;
    for (void *&workspace : m.workspace)
        must(cudaMalloc(reinterpret_cast<char **>(&workspace), mamba_cuda_workspace_bytes(&m.device[0], rows)), "cudaMalloc");
    return m;
}

void free_stack(stack &m)
{
    for (mamba_cuda &d : m.device)
        for (const void *p : {d.in_proj.tiles, d.x_proj.tiles, d.dt_proj.tiles, d.out_proj.tiles,
                              static_cast<const void *>(d.norm), static_cast<const void *>(d.conv_weight),
                              static_cast<const void *>(d.conv_bias), static_cast<const void *>(d.A),
                              static_cast<const void *>(d.skip)})
            cudaFree(const_cast<void *>(p));
    cudaFree(m.states);
    cudaFree(m.phase);
    cudaFree(m.workspace[0]);
    cudaFree(m.workspace[1]);
}

struct batch {
    int rows;
    int32_t *slots;
    float *elapsed, *x;
};

void enqueue(const stack &m, const batch &b, int first, int rows, void *workspace, cudaStream_t stream, int beside = 0,
             cudaEvent_t begun = nullptr)
{
    const step_cuda step = {rows, m.how.precision, m.how.state_bf16, m.how.plain, beside, b.slots + first, m.phase,
                            b.elapsed + first, m.states, m.stride, workspace, begun};
    float *x = b.x + int64_t(first) * m.how.s.D;
    const int layers = int(m.device.size());
    const bool team = !m.how.plain && rows > 8 && rows <= mamba_team_streams(m.device.data(), layers, m.how.precision, m.how.state_bf16);
    const bool stacked = !team && mamba_stack_takes(m.device.data(), layers, &step);
    if (team || stacked) {
        must(begun ? cudaEventRecord(begun, stream) : cudaSuccess, "begun");
        must((team ? mamba_team_step : mamba_stack_step)(m.device.data(), layers, &step, x, stream), team ? "mamba_team_step" : "mamba_stack_step");
        return;
    }
    must(mamba_cuda_step(m.device.data(), layers, &step, x, stream), "mamba_cuda_step");
}

std::vector<int> shuffled(int n)
{
    std::vector<int> v;
    for (int i = 0; i < n; i++)
        v.push_back(i);
    for (int i = n - 1; i > 0; i--)
        std::swap(v[size_t(i)], v[size_t(uniform(0, i + 1))]);
    return v;
}

/* ---- checks -------------------------------------------------------------------------------------------------- */

struct norms {
    double difference = 0, reference = 0;
    void add(double x, double y)
    {
        difference += (x - y) * (x - y);
        reference += y * y;
    }
    double relative() const { return sqrt(difference / reference); }
};

bool failed = false;

void verdict(const char *what, bool good)
{
    printf("%-60s %s\n", what, good ? "ok" : "FAILED");
    failed |= !good;
}

/* Tolerances: each product rounds its operands to 8, 16 or 24 bits; bf16 states round every step besides. */
double tolerance(const options &how)
{
    return how.precision == PRECISION_BF16 || how.state_bf16 ? 3e-2 : how.precision == PRECISION_TF32 ? 3e-4 : 5e-6;
}

/* One stream's double state: layer by layer its history, oldest first, and h, from the device's ring. */
doubles unrolled(const stack &m, const floats &states, int slot, uint32_t phase)
{
    doubles v;
    const sizes &s = m.how.s;
    for (const mamba_cuda &layer : m.device) {
        const float *part = states.data() + slot * m.stride + layer.state_at;
        for (int k = 0; k + 1 < s.K; k++)
            for (int e = 0; e < s.E; e++)
                v.push_back(part[int((phase + uint32_t(k)) % uint32_t(s.K - 1)) * s.E + e]);
        for (int i = 0; i < s.N * s.E; i++)
            v.push_back(part[(s.K - 1) * s.E + i]);
    }
    return v;
}

void check_against_double(const options &how, const char *name)
{
    const int rows = how.slots / 2, steps = 4, D = how.s.D;
    floats states;
    std::vector<uint32_t> phases;
    stack m = make_stack(how, rows, &states, &phases);
    std::vector<int> slots = shuffled(how.slots);
    slots.resize(size_t(rows));
    std::vector<doubles> kept;
    for (int slot : slots)
        kept.push_back(unrolled(m, states, slot, phases[size_t(slot)]));
    norms out, state;
    const size_t history = size_t(how.s.K - 1) * size_t(how.s.E), part = mamba_cuda_state(&m.device[0]);
    for (int t = 0; t < steps; t++) {
        const floats x = random_floats(size_t(rows) * size_t(D), -1, 1);
        floats elapsed(size_t(rows), 1.0f);
        elapsed[size_t(t) % size_t(rows)] = 7;
        const batch b = {rows, device_copy(std::vector<int32_t>(slots.begin(), slots.end())), device_copy(elapsed), device_copy(x)};
        enqueue(m, b, 0, rows, m.workspace[0], nullptr);
        must(cudaDeviceSynchronize(), "step");
        const floats y = host_copy(b.x, x.size());
        for (uint32_t &phase : phases)
            phase = (phase + 1) % MAMBA_CUDA_PHASES;
        must(cudaMemcpy(m.phase, phases.data(), phases.size() * 4, cudaMemcpyHostToDevice), "cudaMemcpy");
        for (int r = 0; r < rows; r++) {
            doubles one(x.begin() + r * D, x.begin() + (r + 1) * D);
            for (size_t l = 0; l < m.host.size(); l++)
                reference_step(m.host[l], how.zoh, elapsed[size_t(r)], &kept[size_t(r)][l * part], &kept[size_t(r)][l * part + history],
                               one.data());
            for (int i = 0; i < D; i++)
                out.add(y[size_t(r * D + i)], one[size_t(i)]);
        }
        cudaFree(b.slots), cudaFree(b.elapsed), cudaFree(b.x);
    }
    const floats after = read_states(m);
    bool untouched = true;
    for (int slot = 0; slot < how.slots; slot++) {
        const auto at = std::find(slots.begin(), slots.end(), slot);
        if (at == slots.end()) {
            untouched &= !memcmp(&after[size_t(slot * m.stride)], &states[size_t(slot * m.stride)], size_t(m.stride) * 4);
            continue;
        }
        const doubles ours = unrolled(m, after, slot, phases[size_t(slot)]), &theirs = kept[size_t(at - slots.begin())];
        for (size_t i = 0; i < ours.size(); i++)
            state.add(ours[i], theirs[i]);
    }
    char line[200];
    snprintf(line, sizeof line, "%s: output %.1e, state %.1e of double", name, out.relative(), state.relative());
    verdict(line, out.relative() <= tolerance(how) && state.relative() <= tolerance(how) && untouched);
    free_stack(m);
}

/* The same streams' outputs and states from a batch of `most`, from its halves as if they went side by side, from small
 * batches, and from the plain path. */
void check_bits(options how, int most, const char *name)
{
    how.slots = most + most / 8 + 1;
    how.layers = 2;
    const int D = how.s.D, half = (most + 1) / 2;
    const stack fresh = make_stack(how, most);
    stack m = fresh;
    const size_t bytes = state_bytes(m) * size_t(how.slots);
    must(cudaMalloc(reinterpret_cast<char **>(&m.states), bytes), "cudaMalloc");
    const std::vector<int> slots = shuffled(how.slots);
    const floats x = random_floats(size_t(most) * size_t(D), -1, 1), elapsed = random_floats(size_t(most), 0.5, 3);
    floats first, first_states;
    bool same = true, same_plain = true;
    std::vector<std::pair<int, bool>> tries = {{most, false}, {half, false}, {64, false}, {7, false}, {1, false},
                                               {std::min(most, 300), true}, {3, true}};
    for (const auto &[rows, plain] : tries) {
        m.how.plain = plain;
        must(cudaMemcpy(m.states, fresh.states, bytes, cudaMemcpyDeviceToDevice), "cudaMemcpy");
        /* small batches walk over the first rows, from the back, so that each meets another place */
        const int count = rows == most ? most : std::min(most, rows * 3);
        floats y(size_t(count) * size_t(D));
        for (int from = (count - 1) / rows * rows; from >= 0; from -= rows) {
            const int n = std::min(rows, count - from);
            const batch b = {n, device_copy(std::vector<int32_t>(slots.begin() + from, slots.begin() + from + n)),
                             device_copy(floats(elapsed.begin() + from, elapsed.begin() + from + n)),
                             device_copy(floats(x.begin() + from * D, x.begin() + (from + n) * D))};
            enqueue(m, b, 0, n, m.workspace[0], nullptr, rows != half ? 0 : from > 0 ? STEP_LAST : STEP_BESIDE);
            must(cudaDeviceSynchronize(), "step");
            const floats part = host_copy(b.x, size_t(n) * size_t(D));
            std::copy(part.begin(), part.end(), y.begin() + from * D);
            cudaFree(b.slots), cudaFree(b.elapsed), cudaFree(b.x);
        }
        const floats states = read_states(m);
        if (first.empty()) {
            first = y, first_states = states;
            continue;
        }
        bool equal = !memcmp(first.data(), y.data(), y.size() * 4);
        for (int r = 0; r < count; r++)
            equal &= !memcmp(&first_states[size_t(slots[size_t(r)] * m.stride)], &states[size_t(slots[size_t(r)] * m.stride)],
                             size_t(m.stride) * 4);
        if (!equal)
            printf("  differs: batch of %d%s\n", rows, plain ? ", plain path" : "");
        (plain ? same_plain : same) &= equal;
    }
    char line[200];
    snprintf(line, sizeof line, "%s: the same bits in batches of 1, 7, 64, %d, %d", name, half, most);
    verdict(line, same);
    snprintf(line, sizeof line, "%s: and on the plain path", name);
    verdict(line, same_plain);
    cudaFree(m.states);
    m.states = fresh.states;
    free_stack(m);
}

constexpr sizes TUNED = {256, 512, 16, 4, 16};

/* The product alone, odd sizes too. */
void check_linear(int in, int out, int rows, int precision, bool int8)
{
    const matrix w = random_matrix(in, out, int8);
    const floats x = random_floats(size_t(in) * size_t(rows), -1, 1);
    const struct linear_cuda packed = upload(w, int8 ? 1 : precision);
    floats poison(size_t(out) * size_t(rows), NAN);
    float *dx = device_copy(x), *dy = device_copy(poison);
    struct linear_cuda_rows r = {};
    r.rows = rows, r.precision = precision, r.x = dx, r.x_stride = in, r.y = dy, r.y_stride = out;
    must(linear_cuda(&packed, &r, nullptr), "linear_cuda");
    must(cudaDeviceSynchronize(), "linear_cuda");
    const floats y = host_copy(dy, poison.size());
    norms n;
    for (int row = 0; row < rows; row += 1 + rows / 50) {
        const doubles reference = product(w, doubles(x.begin() + int64_t(row) * in, x.begin() + int64_t(row + 1) * in));
        for (int o = 0; o < out; o++)
            n.add(y[size_t(row) * size_t(out) + size_t(o)], reference[size_t(o)]);
    }
    const double allowed[] = {0, 5e-3, 3e-5, 1e-6};
    char line[200];
    snprintf(line, sizeof line, "linear %d -> %d, %d rows, precision %d%s: %.1e of double", in, out, rows, precision,
             int8 ? ", int8" : "", n.relative());
    verdict(line, n.relative() <= allowed[precision]);
    cudaFree(dx), cudaFree(dy), cudaFree(const_cast<void *>(packed.tiles));
}

/* Between two layers: one launch gives the bits of two. */
void check_pair(int rows, bool int8)
{
    const struct linear_cuda first = upload(random_matrix(512, 256, int8), 1), second = upload(random_matrix(256, 1024, int8), 1);
    const size_t n = size_t(rows);
    std::vector<__nv_bfloat16> y;
    for (float v : random_floats(n * 512, -1, 1))
        y.push_back(__float2bfloat16(v));
    const floats x = random_floats(n * 256, -1, 1);
    __nv_bfloat16 *dy = device_copy(y);
    float *norm = device_copy(random_floats(256, 0.5, 1.5)), *dx[2];
    uint16_t *dz[2];
    for (int two = 0; two < 2; two++) {
        dx[two] = device_copy(x), dz[two] = device_copy(std::vector<uint16_t>(n * 1024, 0x7fff));
        struct linear_cuda_rows a = {}, b = {};
        a.rows = b.rows = rows, a.precision = b.precision = PRECISION_BF16, a.x_bf16 = b.y_bf16 = a.together = 1, b.y_kept = !two;
        a.x = dy, a.x_stride = 512, a.y = dx[two], a.y_stride = 256, a.residual = dx[two], a.residual_stride = 256;
        b.x = dx[two], b.x_stride = 256, b.norm = norm, b.y = dz[two], b.y_stride = 1024;
        must(two ? linear_cuda(&first, &a, nullptr) : linear_cuda_pair(&first, &a, &second, &b, nullptr), "linear_cuda_pair");
        must(two ? linear_cuda(&second, &b, nullptr) : 0, "linear_cuda");
        must(cudaDeviceSynchronize(), "linear_cuda_pair");
    }
    const bool same = host_copy(dx[0], n * 256) == host_copy(dx[1], n * 256) && host_copy(dz[0], n * 1024) == host_copy(dz[1], n * 1024);
    char line[200];
    snprintf(line, sizeof line, "two products in one launch, %d rows%s: the same bits", rows, int8 ? ", int8" : "");
    verdict(line, same);
    for (const void *p : {static_cast<const void *>(dy), static_cast<const void *>(norm), static_cast<const void *>(dx[0]),
                          static_cast<const void *>(dx[1]), static_cast<const void *>(dz[0]), static_cast<const void *>(dz[1]), first.tiles, second.tiles})
        cudaFree(const_cast<void *>(p));
}

/* A step of so many rows that a block of 132 takes a hundred: the bits of three steps that share them. */
void check_long(int rows)
{
    const options how = {TUNED, 1, rows, PRECISION_BF16, false, true, false, false};
    stack m = make_stack(how, rows);
    const std::vector<int> slots = shuffled(rows);
    const floats x = random_floats(size_t(rows) * size_t(TUNED.D), -1, 1), elapsed = random_floats(size_t(rows), 0.5, 3);
    const size_t bytes = state_bytes(m) * size_t(rows);
    void *fresh = nullptr;
    must(cudaMalloc(reinterpret_cast<char **>(&fresh), bytes), "cudaMalloc");
    must(cudaMemcpy(fresh, m.states, bytes, cudaMemcpyDeviceToDevice), "cudaMemcpy");
    floats y[2], states[2];
    for (int parts : {1, 3}) {
        const batch b = {rows, device_copy(std::vector<int32_t>(slots.begin(), slots.end())), device_copy(elapsed), device_copy(x)};
        must(cudaMemcpy(m.states, fresh, bytes, cudaMemcpyDeviceToDevice), "cudaMemcpy");
        for (int i = 0, first = 0, n; i < parts; i++, first += n) {
            n = (rows - first) / (parts - i);
            enqueue(m, b, first, n, m.workspace[0], nullptr);
        }
        must(cudaDeviceSynchronize(), "step");
        y[parts > 1] = host_copy(b.x, x.size()), states[parts > 1] = read_states(m);
        cudaFree(b.slots), cudaFree(b.elapsed), cudaFree(b.x);
    }
    char line[200];
    snprintf(line, sizeof line, "%d rows: the bits of three parts", rows);
    verdict(line, y[0] == y[1] && states[0] == states[1]);
    cudaFree(fresh);
    free_stack(m);
}

void check_all(int most)
{
    check_pair(1, false);
    check_pair(100, true);
    check_pair(most, false);
    if (most > 1000)
        check_long(13000);
    for (int precision = 1; precision <= 3; precision++)
        for (bool int8 : {false, true}) {
            check_linear(483, 256, std::min(most, 1000), precision, int8);
            check_linear(256, 966, 37, precision, int8);
            check_linear(7, 5, 3, precision, int8);
            check_linear(256, 1024, most, precision, int8);
            check_linear(1100, 40, 130, precision, int8);
        }
    const char *const precisions[] = {"", "bf16", "tf32", "fp32"};
    for (int precision = 1; precision <= 3; precision++)
        for (int i = 0; i < 4; i++) {
            const options how = {TUNED, 4, 50, precision, i % 2 == 1, i >= 2, i % 2 == 1, false};
            const std::string name = std::string(precisions[precision]) + (how.int8 ? ", int8, zoh" : ", euler") +
                                     (how.state_bf16 ? ", bf16 states" : "");
            check_against_double(how, name.c_str());
            check_bits(how, most, name.c_str());
        }
    check_against_double({{48, 96, 5, 3, 7}, 3, 22, 3, false, false, false, false}, "odd sizes");
    check_against_double({{33, 66, 64, 1, 3}, 2, 6, 3, true, false, true, false}, "no history, 64 states");
    check_against_double({{64, 160, 1, 16, 4}, 2, 6, 2, false, true, false, false}, "long history, one state");
}

/* ---- times --------------------------------------------------------------------------------------------------- */

struct times {
    double median, p99;
};

/* us of one replay's `repeats` steps, each. */
times replay(cudaGraphExec_t graph, cudaStream_t stream, int repeats, int replays)
{
    cudaEvent_t begin, end;
    must(cudaEventCreate(&begin), "cudaEventCreate");
    must(cudaEventCreate(&end), "cudaEventCreate");
    std::vector<double> us;
    for (int i = -5; i < replays; i++) {
        float ms = 0;
        must(cudaEventRecord(begin, stream), "cudaEventRecord");
        must(cudaGraphLaunch(graph, stream), "cudaGraphLaunch");
        must(cudaEventRecord(end, stream), "cudaEventRecord");
        must(cudaStreamSynchronize(stream), "replay");
        must(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
        if (i >= 0)
            us.push_back(1e3 * double(ms) / repeats);
    }
    std::sort(us.begin(), us.end());
    return {us[us.size() / 2], us[us.size() * 99 / 100]};
}

template <class F> times timed(cudaStream_t stream, int repeats, int replays, F enqueue_one)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (int i = 0; i < repeats; i++)
        enqueue_one();
    must(cudaStreamEndCapture(stream, &graph), "capture");
    must(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
    const times t = replay(exec, stream, repeats, replays);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    return t;
}

__global__ void __launch_bounds__(512) copy_words(uint4 *to, const uint4 *from, size_t n)
{
    const size_t step = size_t(gridDim.x) * blockDim.x;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += 4 * step) {
        uint4 v[4];
#pragma unroll
        for (int m = 0; m < 4; m++)
            if (i + size_t(m) * step < n)
                v[m] = __ldcs(from + i + size_t(m) * step);
#pragma unroll
        for (int m = 0; m < 4; m++)
            if (i + size_t(m) * step < n)
                __stcs(to + i + size_t(m) * step, v[m]);
    }
}

/* Bytes read and written a second by copies of 1 GiB on the device: the best of several grids, since the runtime's own
 * copy is slower than that. */
double copy_ceiling(cudaStream_t stream)
{
    const size_t bytes = size_t(1) << 30;
    uint4 *from = nullptr, *to = nullptr;
    must(cudaMalloc(&from, bytes), "cudaMalloc");
    must(cudaMalloc(&to, bytes), "cudaMalloc");
    must(cudaMemset(from, 1, bytes), "cudaMemset");
    double us = 1e30;
    for (unsigned blocks : {132u, 264u, 528u, 2112u, 32768u})
        us = std::min(us, timed(stream, 1, 9, [&] { copy_words<<<blocks, 512, 0, stream>>>(to, from, bytes / 16); }).median);
    cudaFree(from), cudaFree(to);
    return 2.0 * double(bytes) / (1e-6 * us);
}

struct lanes {
    cudaStream_t main, side;
    cudaEvent_t begun, join;
};

/* One step in one piece, or its halves side by side, the second's products beside the first's states. */
void enqueue_step(const stack &m, const batch &b, const lanes &on, bool halves)
{
    if (!halves) {
        enqueue(m, b, 0, b.rows, m.workspace[0], on.main);
        return;
    }
    const int half = (b.rows + 1) / 2;
    enqueue(m, b, 0, half, m.workspace[0], on.main, STEP_BESIDE, on.begun);
    must(cudaStreamWaitEvent(on.side, on.begun, 0), "fork");
    enqueue(m, b, half, b.rows - half, m.workspace[1], on.side, STEP_LAST);
    must(cudaEventRecord(on.join, on.side), "join");
    must(cudaStreamWaitEvent(on.main, on.join, 0), "join");
}

void time_stack(const options &how, const std::vector<int> &sizes_of_batch, double ceiling, const lanes &on, FILE *json)
{
    const char *const precisions[] = {"", "bf16", "tf32", "fp32"};
    for (int rows : sizes_of_batch) {
        options o = how;
        o.slots = rows + rows / 16 + 1;
        seed = 7;
        stack m = make_stack(o, rows);
        std::vector<int> slots = shuffled(o.slots);
        slots.resize(size_t(rows));
        const batch b = {rows, device_copy(std::vector<int32_t>(slots.begin(), slots.end())), device_copy(floats(size_t(rows), 1.0f)),
                         device_copy(random_floats(size_t(rows) * size_t(o.s.D), -1, 1))};
        double weights = 0;
        for (const mamba_cuda &l : m.device)
            for (const struct linear_cuda &w : {l.in_proj, l.x_proj, l.dt_proj, l.out_proj})
                weights += double(linear_cuda_bytes(w.in, w.out, w.pieces));
        const double states = double(o.layers) * rows * (2 * o.s.N + o.s.K) * o.s.E * (o.state_bf16 ? 2 : 4);
        const double floor = 1e6 * states / ceiling;
        const int repeats = rows <= 1024 ? 20 : rows <= 4096 ? 4 : 1, replays = rows <= 4096 ? 60 : 20;
        const times one = timed(on.main, repeats, replays, [&] { enqueue_step(m, b, on, false); });
        const times alone = timed(on.main, 1, replays, [&] { enqueue_step(m, b, on, false); });
        const times two = rows < 512 ? one : timed(on.main, repeats, replays, [&] { enqueue_step(m, b, on, true); });
        printf("%s%s%s %6d  floor %8.1f  one %8.1f (p99 %.1f)  halves %8.1f (p99 %.1f)  alone %8.1f (p99 %.1f)  x %.2f\n",
               precisions[o.precision], o.int8 ? " int8" : "", o.state_bf16 ? " bf16 state" : "", rows, floor, one.median, one.p99,
               two.median, two.p99, alone.median, alone.p99, std::min(one.median, two.median) / floor);
        if (json)
            fprintf(json,
                    "{\"precision\": \"%s\", \"int8\": %d, \"state_bf16\": %d, \"rows\": %d, \"floor_us\": %.2f, \"weight_bytes\": %.0f, "
                    "\"us\": %.2f, \"p99_us\": %.2f, \"halves_us\": %.2f, \"halves_p99_us\": %.2f, \"alone_us\": %.2f, \"alone_p99_us\": %.2f}\n",
                    precisions[o.precision], o.int8, o.state_bf16, rows, floor, weights, one.median, one.p99, two.median, two.p99,
                    alone.median, alone.p99);
        cudaFree(b.slots), cudaFree(b.elapsed), cudaFree(b.x);
        free_stack(m);
    }
}

void time_linear(int in, int out, int rows, int precision, bool int8, const lanes &on, FILE *json)
{
    const struct linear_cuda w = upload(random_matrix(in, out, int8), int8 ? 1 : precision);
    float *x = device_copy(random_floats(size_t(in) * size_t(rows), -1, 1)), *y = nullptr;
    must(cudaMalloc(&y, size_t(rows) * size_t(out) * 4), "cudaMalloc");
    struct linear_cuda_rows r = {};
    r.rows = rows, r.precision = precision, r.x = x, r.x_stride = in, r.y = y, r.y_stride = out;
    const times t = timed(on.main, rows > 10000 ? 1 : 10, 30, [&] { must(linear_cuda(&w, &r, on.main), "linear_cuda"); });
    printf("linear %4d -> %4d, %6d rows, precision %d%s: %8.1f us (p99 %.1f), %.0f TFLOP/s\n", in, out, rows, precision,
           int8 ? " int8" : "", t.median, t.p99, 2e-6 * in * out * rows / t.median);
    if (json)
        fprintf(json, "{\"linear\": [%d, %d], \"rows\": %d, \"precision\": %d, \"int8\": %d, \"us\": %.2f, \"p99_us\": %.2f}\n", in,
                out, rows, precision, int8, t.median, t.p99);
    cudaFree(x), cudaFree(y), cudaFree(const_cast<void *>(w.tiles));
}

/* Two steps of one batch through two layers, for a profiler or compute-sanitizer. */
void profile(int rows)
{
    const options how = {TUNED, 2, rows, PRECISION_BF16, false, false, false, false};
    const stack m = make_stack(how, rows);
    const std::vector<int> slots = shuffled(rows);
    const batch b = {rows, device_copy(std::vector<int32_t>(slots.begin(), slots.end())), device_copy(floats(size_t(rows), 1.0f)),
                     device_copy(random_floats(size_t(rows) * size_t(how.s.D), -1, 1))};
    for (int i = 0; i < 2; i++)
        enqueue(m, b, 0, rows, m.workspace[0], nullptr);
    must(cudaDeviceSynchronize(), "step");
}

void time_all(FILE *json, int only)
{
    const auto batches = [&](std::vector<int> all) { return only ? std::vector<int>{only} : all; };
    lanes on = {};
    must(cudaStreamCreateWithFlags(&on.main, cudaStreamNonBlocking), "cudaStreamCreate");
    must(cudaStreamCreateWithFlags(&on.side, cudaStreamNonBlocking), "cudaStreamCreate");
    must(cudaEventCreateWithFlags(&on.begun, cudaEventDisableTiming), "cudaEventCreate");
    must(cudaEventCreateWithFlags(&on.join, cudaEventDisableTiming), "cudaEventCreate");
    const double ceiling = copy_ceiling(on.main);
    printf("copy ceiling %.2f TB/s\nus a step of 4 layers:\n", 1e-12 * ceiling);
    if (json)
        fprintf(json, "{\"copy_ceiling\": %.4e}\n", ceiling);
    const options bf16 = {TUNED, 4, 0, PRECISION_BF16, false, false, false, false};
    options half = bf16, tf32 = bf16, fp32 = bf16, int8 = bf16;
    half.state_bf16 = true;
    tf32.precision = PRECISION_TF32;
    fp32.precision = int8.precision = PRECISION_FP32;
    int8.int8 = true;
    time_stack(bf16, batches({1, 16, 64, 256, 1024, 4096, 32768}), ceiling, on, json);
    time_stack(half, batches({256, 1024, 4096, 32768}), ceiling, on, json);
    time_stack(int8, batches({1, 16, 256, 4096}), ceiling, on, json);
    time_stack(tf32, batches({256, 4096}), ceiling, on, json);
    time_stack(fp32, batches({256, 4096}), ceiling, on, json);
    for (int rows : batches({1, 256, 4096, 100000})) {
        time_linear(256, 1024, rows, 1, false, on, json);
        time_linear(512, 256, rows, 1, false, on, json);
    }
    if (only)
        return;
    time_linear(483, 256, 100000, 3, true, on, json);
    time_linear(256, 966, 100000, 3, true, on, json);
    time_linear(256, 1024, 100000, 3, true, on, json);
    time_linear(512, 256, 100000, 3, true, on, json);
}

} /* namespace */

int main(int argc, char **argv)
{
    bool check = true, time = true, once = false;
    int rows = 0;
    FILE *json = nullptr;
    for (int i = 1; i < argc; i++) {
        const std::string word = argv[i];
        if (word == "--check")
            time = false;
        else if (word == "--time")
            check = false;
        else if (word == "--profile")
            once = true;
        else if (word == "--rows" && i + 1 < argc)
            rows = std::max(1, atoi(argv[++i]));
        else if (word == "--json" && i + 1 < argc)
            json = fopen(argv[++i], "w");
        else
            return fprintf(stderr, "usage: bench_step [--check | --time | --profile] [--json FILE] [--rows N]\n"), 64;
    }
    if (json)
        setvbuf(json, nullptr, _IOLBF, 0); /* what there is stays when the run is cut short */
    if (once)
        return profile(rows ? rows : 4096), 0;
    if (check)
        check_all(rows ? rows : 4096);
    if (time && !failed)
        time_all(json, rows);
    if (json)
        fclose(json);
    return failed;
}
