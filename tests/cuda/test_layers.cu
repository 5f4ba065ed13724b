/* SPDX-License-Identifier: MIT */

/* test_layers: kernels/cuda/layers.h against double references written from the definitions. Streams in shuffled slots
 * go hop by hop (steps) and in pieces (sequences): both must be right, and the same bits. Every output and state is
 * poisoned with NaN first. Exits 0, 1 after a failure, 69 without a GPU. */

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/layers.h"

using floats = std::vector<float>;
using doubles = std::vector<double>;

static int failures;

static void expect(bool ok, const char *what, double value)
{
    failures += !ok;
    if (!ok)
        printf("FAILED %s: %g\n", what, value);
}

static void must(int error, const char *what)
{
    if (error) {
        printf("%s: error %d (%s)\n", what, error, error > 0 ? cudaGetErrorString(cudaError_t(error)) : "sizes");
        exit(error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver ? 69 : 1);
    }
}

/* ---- random, and device memory ------------------------------------------------------------------------------ */

static uint64_t seed = 1;

static double uniform() /* -1 .. 1 */
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return double(int64_t(seed)) / 9223372036854775808.0;
}

static floats noise(size_t n, double size = 1)
{
    floats v(n);
    for (float &x : v)
        x = float(size * (uniform() + uniform() + uniform()));
    return v;
}

/* n values on the device, all NaN; freed with the program. */
template <typename T> struct device {
    T *at = nullptr;
    size_t n;

    explicit device(size_t n_) : n(n_)
    {
        must(cudaMalloc(reinterpret_cast<void **>(&at), (n ? n : 1) * sizeof(T)), "cudaMalloc");
        must(cudaMemset(at, 0xff, n * sizeof(T)), "cudaMemset");
    }
    explicit device(const std::vector<T> &v) : device(v.size())
    {
        put(v.data(), 0, n);
    }
    void put(const T *from, size_t offset, size_t count)
    {
        must(cudaMemcpy(at + offset, from, count * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
    }
    std::vector<T> get() const
    {
        std::vector<T> v(n);
        must(cudaMemcpy(v.data(), at, n * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
        return v;
    }
};

/* || a - b || / || b ||; anything not finite counts as infinitely far. */
static double distance(const floats &a, const doubles &b)
{
    double error = 0, size = 1e-300;
    for (size_t i = 0; i < b.size(); i++) {
        error += (a[i] - b[i]) * (a[i] - b[i]);
        size += b[i] * b[i];
    }
    return std::isfinite(error) ? sqrt(error / size) : INFINITY;
}

static bool same(const floats &a, const floats &b)
{
    return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/* ---- streams ------------------------------------------------------------------------------------------------ */

enum { STREAMS = 3, SLOTS = 5, PERIOD = 360360 };
static const int SLOT[STREAMS] = {3, 0, 4};

/* What the layers under test have of each stream. */
struct world {
    size_t stride;
    device<unsigned char> states;
    device<uint32_t> phase;
    device<int32_t> slots;
    std::vector<state_part_cuda> parts;
    size_t portable = 0;

    world(std::vector<state_part_cuda> parts_, size_t stride_)
        : stride(stride_), states(stride_ * SLOTS), phase(SLOTS), slots(std::vector<int32_t>(SLOT, SLOT + STREAMS)),
          parts(parts_)
    {
        for (auto &part : parts) {
            part.portable = portable;
            portable += size_t(part.length) * size_t(part.width);
        }
        for (int slot = 0; slot < SLOTS; slot++)
            put(slot, nullptr);
    }
    rows_cuda shape(int rows, int sequence, int stream)
    {
        return {rows, sequence, slots.at + stream, phase.at, states.at, stride};
    }
    void put(int slot, const float *portable_state)
    {
        const rows_cuda r = shape(1, 0, 0);
        must(state_cuda_put(&r, parts.data(), int(parts.size()), slot, portable_state, nullptr), "state_cuda_put");
    }
    floats get(int slot)
    {
        const rows_cuda r = shape(1, 0, 0);
        device<float> out(portable);
        must(state_cuda_get(&r, parts.data(), int(parts.size()), slot, out.at, nullptr), "state_cuda_get");
        return out.get();
    }
};

static size_t aligned(size_t bytes)
{
    return (bytes + 15) / 16 * 16;
}

/* Rows in and out of one call of the chain under test; inputs: one or more arrays of the given widths. */
struct chain {
    std::vector<int> in, out; /* widths */
    std::function<void(const rows_cuda &, std::vector<device<float>> &, std::vector<device<float>> &)> run;
};

using table = std::vector<std::vector<floats>>; /* [stream][array] (hops, width) */

static void finish_alone(const rows_cuda &r)
{
    device<uint8_t> blown{size_t(r.rows)};
    device<float> zeros(floats(size_t(r.rows), 0.0f));
    const struct finish_cuda f = {blown.at, PERIOD};
    must(finish_cuda(&r, zeros.at, 1, &f, nullptr), "finish_cuda");
}

/* Hops first.. of the rows (stream, hop) pairs that `where` gives through one call. */
static void one_call(const chain &c, const rows_cuda &r, const table &in, table &out,
                     std::function<std::pair<int, int>(int)> where)
{
    std::vector<device<float>> ins, outs;
    for (size_t k = 0; k < c.in.size(); k++) {
        const size_t width = size_t(c.in[k]);
        ins.emplace_back(width * size_t(r.rows));
        for (int row = 0; row < r.rows; row++)
            ins[k].put(&in[size_t(where(row).first)][k][size_t(where(row).second) * width], size_t(row) * width, width);
    }
    for (int width : c.out)
        outs.emplace_back(size_t(width) * size_t(r.rows));
    c.run(r, ins, outs);
    for (size_t k = 0; k < c.out.size(); k++) {
        const floats got = outs[k].get();
        for (int row = 0; row < r.rows; row++)
            memcpy(&out[size_t(where(row).first)][k][size_t(where(row).second) * size_t(c.out[k])],
                   &got[size_t(row) * size_t(c.out[k])], size_t(c.out[k]) * sizeof(float));
    }
    for (auto &d : ins)
        cudaFree(d.at);
    for (auto &d : outs)
        cudaFree(d.at);
}

static table empty_table(const std::vector<int> &widths, int hops)
{
    table t(STREAMS);
    for (auto &stream : t)
        for (int width : widths)
            stream.emplace_back(size_t(width) * size_t(hops));
    return t;
}

/* All hops: step by step, or each stream in pieces. */
static table run_steps(const chain &c, world &w, const table &in, int hops)
{
    table out = empty_table(c.out, hops);
    for (int hop = 0; hop < hops; hop++)
        one_call(c, w.shape(STREAMS, 0, 0), in, out, [&](int row) { return std::make_pair(row, hop); });
    return out;
}

static table run_pieces(const chain &c, world &w, const table &in, int hops)
{
    static const int pieces[] = {1, 2, 5, 1 << 30};
    table out = empty_table(c.out, hops);
    for (int stream = 0; stream < STREAMS; stream++)
        for (int done = 0, i = 0; done < hops; i++) {
            const int count = pieces[i] < hops - done ? pieces[i] : hops - done;
            one_call(c, w.shape(count, 1, stream), in, out,
                     [&](int row) { return std::make_pair(stream, done + row); });
            done += count;
        }
    return out;
}

/* Steps and pieces of the chain against the reference and each other, states too. The reference is (hops, width) of
 * each output, from a stream's inputs. */
static void check_chain(const char *name, const chain &c, std::vector<state_part_cuda> parts, size_t stride,
                        const table &in, int hops, double tolerance,
                        std::function<std::vector<doubles>(const std::vector<floats> &)> reference)
{
    world stepped(parts, stride), pieced(parts, stride);
    const table a = run_steps(c, stepped, in, hops), b = run_pieces(c, pieced, in, hops);
    double worst = 0;
    for (int s = 0; s < STREAMS; s++) {
        const std::vector<doubles> want = reference(in[size_t(s)]);
        for (size_t k = 0; k < want.size(); k++) {
            const double d = distance(a[size_t(s)][k], want[k]);
            worst = d > worst ? d : worst;
            expect(same(a[size_t(s)][k], b[size_t(s)][k]), name, -double(k) - 1);
        }
        expect(same(stepped.get(SLOT[s]), pieced.get(SLOT[s])), name, -100);
    }
    expect(worst <= tolerance, name, worst);
    printf("%-44s %8.1e  steps = pieces\n", name, worst);
}

/* ---- transforms --------------------------------------------------------------------------------------------- */

struct transform_case {
    int window, hop, hops;
    float compress;
    spectral_how how;
    int taps;
    bool fused; /* istft does the filter or mask */
};

/* cos and sin of whole fractions of a turn */
struct circle {
    doubles cosine, sine;

    explicit circle(int n) : cosine(size_t(n)), sine(size_t(n))
    {
        for (int i = 0; i < n; i++)
            cosine[size_t(i)] = cos(2 * M_PI * i / n), sine[size_t(i)] = sin(2 * M_PI * i / n);
    }
    size_t index(int f, int i) const
    {
        return size_t(int64_t(f) * i % int64_t(cosine.size()));
    }
};

static double root_hann(int window, int i)
{
    return sqrt(0.5 - 0.5 * cos(2 * M_PI * i / window));
}

/* X (hops, 2, bins) from samples, by definition. */
static doubles reference_spectra(const transform_case &t, const floats &x)
{
    const int bins = t.window / 2 + 1;
    const circle turns(t.window);
    doubles X(size_t(t.hops) * 2 * size_t(bins));
    for (int hop = 0; hop < t.hops; hop++)
        for (int f = 0; f < bins; f++) {
            double re = 0, im = 0;
            for (int i = 0; i < t.window; i++) {
                const int at = (hop + 1) * t.hop - t.window + i;
                const double v = at < 0 || !std::isfinite(x[size_t(at)]) ? 0 : x[size_t(at)] * root_hann(t.window, i);
                re += v * turns.cosine[turns.index(f, i)];
                im -= v * turns.sine[turns.index(f, i)];
            }
            X[size_t(hop * 2 * bins + f)] = re;
            X[size_t(hop * 2 * bins + bins + f)] = im;
        }
    return X;
}

static doubles reference_features(const transform_case &t, const doubles &X)
{
    if (t.compress == 1)
        return X;
    const int bins = t.window / 2 + 1;
    doubles y(X.size() / 2 * 3);
    for (int hop = 0; hop < t.hops; hop++)
        for (int f = 0; f < bins; f++) {
            const double re = X[size_t(hop * 2 * bins + f)], im = X[size_t(hop * 2 * bins + bins + f)];
            const double size = sqrt(re * re + im * im + 1e-12);
            double *to = &y[size_t(hop * 3 * bins + f)];
            to[0] = pow(size, t.compress);
            to[bins] = re * pow(size, t.compress - 1);
            to[2 * bins] = im * pow(size, t.compress - 1);
        }
    return y;
}

static doubles reference_source(const transform_case &t, const doubles &X, const floats &in)
{
    const int bins = t.window / 2 + 1, width = 2 * bins;
    doubles Y(X.size());
    for (int hop = 0; hop < t.hops; hop++)
        for (int f = 0; f < bins; f++) {
            double re = 0, im = 0;
            if (t.how == SPECTRAL_PLAIN) {
                re = in[size_t(hop * width + f)], im = in[size_t(hop * width + bins + f)];
            } else if (t.how == SPECTRAL_FILTER) {
                for (int k = 0; k < t.taps && k <= hop; k++) {
                    const float *w = &in[size_t((hop * t.taps + k) * width + f)];
                    const double *x = &X[size_t((hop - k) * width + f)];
                    re += double(w[0]) * x[0] - double(w[bins]) * x[bins];
                    im += double(w[0]) * x[bins] + double(w[bins]) * x[0];
                }
            } else {
                const double raw = in[size_t(hop * bins + f)];
                const double m = t.how == SPECTRAL_MASK ? raw : 1 / (1 + exp(-raw));
                re = m * X[size_t(hop * width + f)], im = m * X[size_t(hop * width + bins + f)];
            }
            Y[size_t(hop * width + f)] = re;
            Y[size_t(hop * width + bins + f)] = im;
        }
    return Y;
}

/* Samples from Y: inverse transforms, windowed, added where they overlap. */
static doubles reference_samples(const transform_case &t, const doubles &Y)
{
    const int bins = t.window / 2 + 1, lag = t.window - t.hop;
    const circle turns(t.window);
    doubles sum(size_t(t.hops * t.hop + lag));
    for (int hop = 0; hop < t.hops; hop++)
        for (int i = 0; i < t.window; i++) {
            double v = 0;
            for (int f = 0; f < bins; f++) {
                const double *y = &Y[size_t(hop * 2 * bins + f)];
                const bool edge = f == 0 || f == bins - 1;
                const double re = y[0] * turns.cosine[turns.index(f, i)];
                v += edge ? re : 2 * (re - y[bins] * turns.sine[turns.index(f, i)]);
            }
            sum[size_t(hop * t.hop + i)] += v / t.window * root_hann(t.window, i) * 2 * t.hop / t.window;
        }
    sum.resize(size_t(t.hops * t.hop));
    return sum;
}

static void check_transform(const transform_case &t)
{
    const int bins = t.window / 2 + 1, past = t.window / t.hop - 1, features = (t.compress < 1 ? 3 : 2) * bins;
    const bool filter = t.how == SPECTRAL_FILTER, mask = t.how == SPECTRAL_MASK || t.how == SPECTRAL_SIGMOID;
    const int width = filter ? 2 * t.taps * bins : mask ? bins : 2 * bins, history = (t.taps - 1) * 2 * bins;
    const size_t filter_at = aligned(size_t(past * t.hop) * 4), istft_at = filter_at + aligned(size_t(history) * 4);
    std::vector<state_part_cuda> parts = {{0, 0, past, t.hop, 0}, {istft_at, 0, past, t.hop, 0}};
    if (history)
        parts.push_back({filter_at, 0, t.taps - 1, 2 * bins, 0});

    floats tables(stft_cuda_table_floats(t.window));
    stft_cuda_fill(t.window, t.hop, tables.data());
    const device<float> on_device(tables);
    const struct stft_cuda stft = {t.window, t.hop, on_device.at};
    const struct spectral_cuda how = {t.how, bins, t.taps, filter_at}, plain = {SPECTRAL_PLAIN, bins, 1, 0};
    chain c = {{t.hop, width}, {2 * bins, features, 2 * bins, t.hop}, nullptr};
    c.run = [&](const rows_cuda &r, std::vector<device<float>> &in, std::vector<device<float>> &out) {
        device<uint8_t> blown{size_t(r.rows)};
        const struct finish_cuda finish = {blown.at, PERIOD};
        must(stft_cuda(&r, &stft, 0, t.compress, in[0].at, out[0].at, out[1].at, nullptr), "stft_cuda");
        if (!t.fused)
            must(spectral_cuda(&r, &how, in[1].at, width, out[0].at, out[2].at, nullptr), "spectral_cuda");
        must(istft_cuda(&r, &stft, istft_at, t.fused ? &how : &plain, t.fused ? in[1].at : out[2].at,
                        t.fused ? width : 2 * bins, t.fused ? out[0].at : nullptr, out[3].at, &finish, nullptr),
             "istft_cuda");
        if (t.fused)
            must(cudaMemset(out[2].at, 0, out[2].n * sizeof(float)), "cudaMemset");
        for (uint8_t b : blown.get())
            expect(b == 0, "blown", b);
        cudaFree(blown.at);
    };
    table in(STREAMS);
    for (auto &stream : in)
        stream = {noise(size_t(t.hops * t.hop), 0.1), noise(size_t(t.hops * width))};
    in[1][0][size_t(t.hop)] = NAN; /* counts as 0 */
    in[1][0][size_t(t.hop + 1)] = -INFINITY;

    char name[128];
    snprintf(name, sizeof name, "window %d/%d ^%.1f, %s %d%s", t.window, t.hop, t.compress,
             filter ? "filter"
             : mask ? "mask"
                    : "plain",
             t.taps, t.fused ? ", fused" : "");
    check_chain(name, c, parts, aligned(istft_at + size_t(past * t.hop) * 4), in, t.hops, 1e-6,
                [&](const std::vector<floats> &x) {
                    const doubles X = reference_spectra(t, x[0]), Y = reference_source(t, X, x[1]);
                    return std::vector<doubles>{X, reference_features(t, X), t.fused ? doubles(Y.size()) : Y,
                                                reference_samples(t, Y)};
                });
}

/* A stream alone, and as row 0 of `rows`: another way of dealing threads, the same bits. */
static void check_crews(int rows)
{
    const int window = 320, hop = 160, bins = 161, width = 6 * bins;
    floats tables(stft_cuda_table_floats(window));
    stft_cuda_fill(window, hop, tables.data());
    const device<float> on_device(tables);
    const struct stft_cuda stft = {window, hop, on_device.at};
    const struct spectral_cuda how = {SPECTRAL_FILTER, bins, 3, 1280};
    const size_t stride = 1280 + aligned(4 * 2 * 322);
    const device<float> x(noise(size_t(rows * hop), 0.1)), in(noise(size_t(rows * width)));
    std::vector<int32_t> all(size_t(rows), 0);
    for (int i = 0; i < rows; i++)
        all[size_t(i)] = (i * 7 + 3) % rows; /* rows is no multiple of 7 */
    const device<int32_t> slots(all);
    std::vector<floats> kept[2];
    for (int pass = 0; pass < 2; pass++) {
        const int n = pass ? rows : 1;
        const device<unsigned char> states(std::vector<unsigned char>(stride * size_t(rows), 0));
        const device<uint32_t> phase(std::vector<uint32_t>(size_t(rows), 0));
        const device<uint8_t> blown{size_t(rows)};
        const rows_cuda r = {n, 0, slots.at, phase.at, states.at, stride};
        const struct finish_cuda finish = {blown.at, PERIOD};
        device<float> spectrum(size_t(n * 2 * bins)), features(size_t(n * 3 * bins)), out(size_t(n * hop));
        for (int step = 0; step < 4; step++) {
            must(stft_cuda(&r, &stft, 0, 0.3f, x.at, spectrum.at, features.at, nullptr), "stft_cuda");
            must(istft_cuda(&r, &stft, 640, &how, in.at, width, spectrum.at, out.at, &finish, nullptr), "istft_cuda");
        }
        for (const auto &d : {&spectrum, &features, &out}) {
            floats got = d->get();
            got.resize(got.size() / size_t(n));
            kept[pass].push_back(got);
        }
        expect(phase.get()[size_t(all[0])] == 4, "phase", double(phase.get()[size_t(all[0])]));
    }
    for (size_t k = 0; k < 3; k++)
        expect(same(kept[0][k], kept[1][k]), "alone = in a batch", double(k));
    printf("%-44s           same bits\n", ("alone = first of " + std::to_string(rows) + " rows").c_str());
}

/* ---- rows of activations ------------------------------------------------------------------------------------ */

static void check_norm(int rows, int width, int stride)
{
    const floats x = noise(size_t(rows * stride)), weight = noise(size_t(width));
    const device<float> xs(x), ws(weight), y(size_t(rows * stride));
    must(norm_cuda(ws.at, xs.at, stride, y.at, stride, rows, width, nullptr), "norm_cuda");
    const floats got = y.get();
    floats dense;
    doubles want;
    for (int r = 0; r < rows; r++) {
        double sum = 0;
        for (int i = 0; i < width; i++)
            sum += double(x[size_t(r * stride + i)]) * x[size_t(r * stride + i)];
        for (int i = 0; i < width; i++) {
            want.push_back(x[size_t(r * stride + i)] / sqrt(sum / width + 1e-5) * weight[size_t(i)]);
            dense.push_back(got[size_t(r * stride + i)]);
        }
    }
    const double d = distance(dense, want);
    expect(d <= 2e-7, "norm", d);
    printf("norm of %d, rows %d %-26s %8.1e\n", width, rows, "", d);
}

static double rounded(float x, bool bf16)
{
    return bf16 ? __bfloat162float(__float2bfloat16(x)) : x;
}

/* x are the left parts of wider rows. bf16 states: what crosses a call's border is rounded, so steps and pieces differ
 * by that, and are not compared. */
static void check_conv(int width, int taps, bool silu, bool bias)
{
    const int wide = 2 * width, hops = 21;
    const floats weight = noise(size_t(taps * width), 0.5), offset = noise(size_t(width));
    const device<float> weights(weight), offsets(offset);
    const struct conv_cuda conv = {width, taps, silu, 0, weights.at, bias ? offsets.at : nullptr, 16};
    chain c = {{wide}, {width}, nullptr};
    c.run = [&](const rows_cuda &r, std::vector<device<float>> &in, std::vector<device<float>> &out) {
        must(conv_cuda(&r, &conv, in[0].at, wide, out[0].at, width, nullptr), "conv_cuda");
        finish_alone(r);
    };
    table in(STREAMS);
    for (auto &stream : in)
        stream = {noise(size_t(hops * wide))};
    std::vector<state_part_cuda> parts;
    if (taps > 1)
        parts.push_back({16, 0, taps - 1, width, 0});
    char name[128];
    snprintf(name, sizeof name, "conv of %d, taps %d%s%s", width, taps, silu ? ", silu" : "", bias ? ", bias" : "");
    check_chain(
        name, c, parts, aligned(16 + size_t(taps * width) * 4), in, hops, 5e-7, [&](const std::vector<floats> &x) {
            doubles y(size_t(hops * width));
            for (int t = 0; t < hops; t++)
                for (int e = 0; e < width; e++) {
                    double sum = bias ? offset[size_t(e)] : 0;
                    for (int k = 0; k < taps && k <= t; k++)
                        sum += double(weight[size_t((taps - 1 - k) * width + e)]) * x[0][size_t((t - k) * wide + e)];
                    y[size_t(t * width + e)] = silu ? sum / (1 + exp(-sum)) : sum;
                }
            return std::vector<doubles>{y};
        });
}

/* A bf16 ring: steps against the definition on rounded inputs. */
static void check_conv_bf16()
{
    const int width = 96, taps = 4, hops = 9;
    const floats weight = noise(size_t(taps * width)), x = noise(size_t(hops * width));
    const device<float> weights(weight), xs(x);
    device<float> y(size_t(hops * width));
    const struct conv_cuda conv = {width, taps, 0, 1, weights.at, nullptr, 0};
    world w({{0, 0, taps - 1, width, 1}}, aligned(size_t(taps * width) * 2));
    for (int t = 0; t < hops; t++) {
        const rows_cuda r = w.shape(1, t % 2, 0); /* one row is one row in both shapes */
        must(conv_cuda(&r, &conv, xs.at + t * width, width, y.at + t * width, width, nullptr), "conv_cuda");
        finish_alone(r);
    }
    doubles want(size_t(hops * width));
    for (int t = 0; t < hops; t++)
        for (int e = 0; e < width; e++)
            for (int k = 0; k < taps && k <= t; k++)
                want[size_t(t * width + e)] +=
                    double(weight[size_t((taps - 1 - k) * width + e)]) * rounded(x[size_t((t - k) * width + e)], k > 0);
    const double d = distance(y.get(), want);
    expect(d <= 5e-7, "conv, bf16 state", d);
    printf("%-44s %8.1e\n", "conv, bf16 state", d);
}

/* ---- what looks at a value or a row alone -------------------------------------------------------------------------- */

static void check_rows(const char *name, const floats &got, const doubles &want, double tolerance)
{
    const double d = distance(got, want);
    expect(d <= tolerance, name, d);
    printf("%-44s %8.1e\n", name, d);
}

static doubles softmax_of(const floats &x, size_t width)
{
    doubles y;
    for (size_t i = 0; i < x.size(); i++) {
        double sum = 0;
        for (size_t k = i / width * width; k < (i / width + 1) * width; k++)
            sum += exp(double(x[k]) - x[i]);
        y.push_back(1 / sum);
    }
    return y;
}

static void check_elements(int rows, int width)
{
    const size_t n = size_t(rows * width), w = size_t(width);
    const floats x = noise(n, 8), mean = noise(w), factor = noise(w), halves = noise(2 * n, 3), table_ = noise(5 * w);
    const device<float> xs(x), means(mean), factors(factor), pairs(halves), weight(table_), y(n);
    doubles want;
    must(sigmoid_cuda(xs.at, y.at, rows, width, nullptr), "sigmoid_cuda");
    for (float v : x)
        want.push_back(1 / (1 + exp(-double(v))));
    check_rows("sigmoid", y.get(), want, 2e-7);
    must(softmax_cuda(xs.at, y.at, rows, width, nullptr), "softmax_cuda");
    check_rows("softmax", y.get(), softmax_of(x, w), 3e-7);
    must(scale_cuda(means.at, factors.at, xs.at, y.at, rows, width, nullptr), "scale_cuda");
    for (size_t i = 0; i < n; i++)
        want[i] = (double(x[i]) - mean[i % w]) * factor[i % w];
    check_rows("scale", y.get(), want, 2e-7);
    for (int residual = 0; residual < 2; residual++) {
        must(glu_cuda(pairs.at, residual ? xs.at : nullptr, y.at, rows, width, nullptr), "glu_cuda");
        for (size_t i = 0; i < n; i++) {
            const float *row = &halves[i / w * 2 * w + i % w];
            want[i] = row[0] / (1 + exp(-double(row[w]))) + (residual ? x[i] : 0);
        }
        check_rows(residual ? "glu, residual" : "glu", y.get(), want, 3e-7);
    }
    const floats tokens = {0, 4, 2.9f, 5, -1, NAN, INFINITY, 1e9f};
    static const size_t rows_of[] = {0, 4, 2, 0, 0, 0, 0, 0};
    const device<float> given(tokens), embedded(8 * w);
    must(embedding_cuda(weight.at, 5, given.at, embedded.at, 8, width, nullptr), "embedding_cuda");
    const floats got = embedded.get();
    for (size_t i = 0; i < got.size(); i++)
        expect(got[i] == table_[rows_of[i / w] * w + i % w], "embedding", double(i));
    const device<float> broken(floats{1, NAN, 2, 3}), out(4);
    must(softmax_cuda(broken.at, out.at, 2, 2, nullptr), "softmax_cuda");
    expect(std::isnan(out.get()[0]) && std::isfinite(out.get()[3]), "a NaN stays one in its row", out.get()[0]);
    must(sigmoid_cuda(broken.at, out.at, 2, 2, nullptr), "sigmoid_cuda");
    expect(std::isnan(out.get()[1]) && std::isfinite(out.get()[2]), "a NaN stays one", out.get()[1]);
}

/* ---- channels that remember for ever ------------------------------------------------------------------------------- */

/* Rows and, beside them, the time before each: mostly 1. */
static table timed_rows(int width, int hops)
{
    table in(STREAMS);
    for (auto &stream : in) {
        stream = {noise(size_t(hops * width)), floats(size_t(hops), 1.0f)};
        for (int t = 3; t < hops; t += 4)
            stream[1][size_t(t)] = t % 3 ? 0.5f : float(1 + 9 * fabs(uniform()));
    }
    return in;
}

static void check_pool(int width, bool ema, float hops_kept)
{
    const int hops = 40;
    const struct pool_cuda pool = {width, ema, hops_kept, 16};
    chain c = {{width, 1}, {width}, nullptr};
    c.run = [&](const rows_cuda &r, std::vector<device<float>> &in, std::vector<device<float>> &out) {
        must(pool_cuda(&r, &pool, in[1].at, in[0].at, out[0].at, nullptr), "pool_cuda");
        finish_alone(r);
    };
    const int values = ema ? width : 2 * width;
    char name[128];
    snprintf(name, sizeof name, "pool of %d, %s %g", width, ema ? "ema" : "mean", double(hops_kept));
    check_chain(name, c, {{16, 0, 1, values, 0}}, aligned(16 + size_t(values) * 4), timed_rows(width, hops), hops, 5e-7,
                [&](const std::vector<floats> &x) {
                    doubles y(size_t(hops * width)), mean(size_t(width), 0.0);
                    double total = 0;
                    for (int t = 0; t < hops; t++) {
                        const double elapsed = x[1][size_t(t)];
                        total = std::min(total + elapsed, double(hops_kept));
                        const double weight = ema ? 1 - exp(-elapsed / hops_kept) : std::min(1.0, elapsed / total);
                        for (int e = 0; e < width; e++) {
                            mean[size_t(e)] += weight * (x[0][size_t(t * width + e)] - mean[size_t(e)]);
                            y[size_t(t * width + e)] = mean[size_t(e)];
                        }
                    }
                    return std::vector<doubles>{y};
                });
}

/* A diagonal system of random parameters, on the device and as the definition has it. */
struct system_of_pairs {
    int width, pairs;
    bool bilinear;
    floats A, C, dt, skip;

    system_of_pairs(int width_, int pairs_, bool bilinear_)
        : width(width_), pairs(pairs_), bilinear(bilinear_), A(noise(size_t(2 * width_ * pairs_), 2)),
          C(noise(size_t(2 * width_ * pairs_))), dt(noise(size_t(width_), 0.1)), skip(noise(size_t(width_)))
    {
        for (size_t i = 0; i < A.size() / 2; i++)
            A[i] = -fabsf(A[i]) - 0.01f;
        for (auto &v : dt)
            v = fabsf(v) + 0.001f;
    }
    std::complex<double> pole(int n, int e) const
    {
        return {A[size_t(n * width + e)], A[size_t((pairs + n) * width + e)]};
    }
    void discretise(int n, int e, double elapsed, std::complex<double> *a, std::complex<double> *b) const
    {
        const std::complex<double> z = pole(n, e) * elapsed * double(dt[size_t(e)]), one = 1;
        *a = bilinear ? (one + z / 2.0) / (one - z / 2.0) : std::exp(z);
        *b = bilinear ? elapsed * double(dt[size_t(e)]) / (one - z / 2.0) : (std::exp(z) - one) / pole(n, e);
    }
    /* A-bar - 1 and B-bar for a step of 1, as planes */
    std::pair<floats, floats> tables() const
    {
        floats a(A.size()), b(A.size());
        for (int n = 0; n < pairs; n++)
            for (int e = 0; e < width; e++) {
                std::complex<double> a_bar, b_bar;
                discretise(n, e, 1, &a_bar, &b_bar);
                a[size_t(n * width + e)] = float(a_bar.real() - 1), a[size_t((pairs + n) * width + e)] = float(a_bar.imag());
                b[size_t(n * width + e)] = float(b_bar.real()), b[size_t((pairs + n) * width + e)] = float(b_bar.imag());
            }
        return {a, b};
    }
    doubles run(const floats &x, const floats &elapsed) const
    {
        doubles y;
        std::vector<std::complex<double>> h(size_t(width * pairs));
        for (size_t t = 0; t < elapsed.size(); t++)
            for (int e = 0; e < width; e++) {
                const double u = x[t * size_t(width) + size_t(e)];
                double sum = skip[size_t(e)] * u;
                for (int n = 0; n < pairs; n++) {
                    std::complex<double> a, b, &state = h[size_t(n * width + e)];
                    discretise(n, e, elapsed[t], &a, &b);
                    state = a * state + b * u;
                    sum += C[size_t(n * width + e)] * state.real() - C[size_t((pairs + n) * width + e)] * state.imag();
                }
                y.push_back(sum);
            }
        return y;
    }
};

static double activated(int how, double y)
{
    return how == DIAGONAL_SILU ? y / (1 + exp(-y)) : how == DIAGONAL_GELU ? y * 0.5 * erfc(-y / sqrt(2.0)) : y;
}

static void check_diagonal(int width, int pairs, bool bilinear, int activation, bool residual)
{
    const int hops = 45;
    const system_of_pairs s(width, pairs, bilinear);
    const auto tables = s.tables();
    const device<float> a(tables.first), b(tables.second), C(s.C), A(s.A), dt(s.dt), skip(s.skip);
    const struct diagonal_cuda d = {width, pairs, bilinear, activation, a.at, b.at, C.at, A.at, dt.at, skip.at, 32};
    chain c = {{width, 1}, {width}, nullptr};
    c.run = [&](const rows_cuda &r, std::vector<device<float>> &in, std::vector<device<float>> &out) {
        must(diagonal_cuda(&r, &d, in[1].at, in[0].at, residual ? in[0].at : nullptr, out[0].at, nullptr), "diagonal_cuda");
        finish_alone(r);
    };
    const int values = 2 * width * pairs;
    char name[128];
    snprintf(name, sizeof name, "diagonal of %d, pairs %d%s, %d%s", width, pairs, bilinear ? ", bilinear" : "", activation,
             residual ? ", residual" : "");
    check_chain(name, c, {{32, 0, 1, values, 0}}, aligned(32 + size_t(values) * 4), timed_rows(width, hops), hops, 1e-6,
                [&](const std::vector<floats> &x) {
                    doubles y = s.run(x[0], x[1]);
                    for (size_t i = 0; i < y.size(); i++)
                        y[i] = activated(activation, y[i]) + (residual ? x[0][i] : 0);
                    return std::vector<doubles>{y};
                });
}

/* ---- samples and states ------------------------------------------------------------------------------------- */

static void check_samples()
{
    floats x = noise(1003), want = x;
    x[0] = NAN, x[500] = INFINITY, x[1002] = -INFINITY;
    want[0] = want[500] = want[1002] = 0;
    const device<float> xs(x);
    must(clean_cuda(xs.at, x.size(), nullptr), "clean_cuda");
    expect(same(xs.get(), want), "clean", 0);

    world w({{0, 0, 2, 4, 0}}, 32);
    floats rows = noise(STREAMS * 70);
    rows[70 + 69] = NAN;
    const device<float> on_device(rows);
    const device<uint8_t> blown(STREAMS);
    const struct finish_cuda f = {blown.at, 3};
    for (int i = 0; i < 5; i++) {
        const rows_cuda r = w.shape(STREAMS, 0, 0);
        must(finish_cuda(&r, on_device.at, 70, &f, nullptr), "finish_cuda");
    }
    const rows_cuda r = w.shape(2, 1, 2);
    const auto flags = blown.get();
    must(finish_cuda(&r, on_device.at, 70, &f, nullptr), "finish_cuda");
    const auto phase = w.phase.get();
    expect(flags[0] == 0 && flags[1] == 1 && flags[2] == 0, "blown", flags[1]);
    expect(phase[3] == 2 && phase[0] == 2 && phase[4] == 1 && phase[1] == 0, "phases", phase[4]);
    printf("samples, blown rows, phases\n");
}

static void check_states()
{
    const int N = 5, E = 37;
    std::vector<state_part_cuda> parts;
    for (int i = 0; i < 70; i++) /* more than a launch takes */
        parts.push_back({size_t(i) * 64, 0, 1 + i % 4, 3, i % 2});
    parts.push_back({70 * 64, 0, 1, N * E, 0});
    world w(parts, aligned(70 * 64 + N * E * 4));
    floats state = noise(w.portable);
    for (auto &x : state)
        x = float(rounded(x, true));
    const device<float> in(state);
    w.put(2, in.at);
    expect(same(w.get(2), state), "state out = state in", 0);
    expect(same(w.get(1), floats(w.portable, 0.0f)), "another slot is zero", 0);

    const device<int32_t> slot(std::vector<int32_t>{2});
    const device<float> h(size_t(N * E));
    rows_cuda r = w.shape(1, 1, 0);
    r.slots = slot.at;
    must(state_cuda_to_scan(&r, 70 * 64, 0, N, E, h.at, nullptr), "state_cuda_to_scan");
    floats turned = h.get();
    const float *kept = &state[w.portable - size_t(N * E)];
    for (int i = 0; i < N * E; i++)
        expect(turned[size_t(i % E * N + i / E)] == kept[i], "to_scan", i);
    for (auto &x : turned)
        x = -x;
    const device<float> back(turned);
    must(state_cuda_from_scan(&r, 70 * 64, 0, N, E, back.at, nullptr), "state_cuda_from_scan");
    const floats after = w.get(2);
    for (size_t i = 0; i < state.size(); i++)
        expect(after[i] == (i < w.portable - size_t(N * E) ? state[i] : -state[i]), "from_scan", double(i));
    printf("states in, out, turned\n");
}

int main()
{
    check_transform({320, 160, 12, 0.3f, SPECTRAL_FILTER, 3, true});
    check_transform({320, 160, 11, 0.3f, SPECTRAL_FILTER, 3, false});
    check_transform({320, 80, 20, 1.0f, SPECTRAL_FILTER, 5, true});
    check_transform({512, 256, 9, 0.5f, SPECTRAL_SIGMOID, 1, true});
    check_transform({512, 128, 13, 0.5f, SPECTRAL_MASK, 1, false});
    check_transform({960, 480, 9, 0.3f, SPECTRAL_PLAIN, 1, true});
    check_transform({30, 10, 40, 0.7f, SPECTRAL_FILTER, 2, true});
    check_transform({4, 2, 30, 0.3f, SPECTRAL_FILTER, 1, true});
    check_transform({8, 1, 30, 1.0f, SPECTRAL_PLAIN, 1, false});
    check_transform({1250, 625, 9, 0.3f, SPECTRAL_MASK, 1, true});
    check_transform({2048, 512, 9, 0.3f, SPECTRAL_FILTER, 3, true});
    check_crews(1000);
    check_norm(9, 256, 256);
    check_norm(3, 255, 256);
    check_norm(5, 1, 1);
    check_norm(2, 1000, 1003);
    check_conv(96, 4, true, true);
    check_conv(33, 4, false, false);
    check_conv(7, 1, true, true);
    check_conv(5, 2, false, true);
    check_conv(16, 30, true, false);
    check_conv_bf16();
    check_elements(7, 33);
    check_elements(3, 1);
    check_pool(37, false, INFINITY);
    check_pool(5, false, 12);
    check_pool(200, true, 7.5f);
    check_diagonal(37, 4, false, DIAGONAL_PLAIN, false);
    check_diagonal(70, 32, true, DIAGONAL_GELU, true);
    check_diagonal(3, 128, false, DIAGONAL_SILU, false);
    check_diagonal(1, 1, true, DIAGONAL_PLAIN, true);
    check_samples();
    check_states();
    must(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    printf(failures ? "%d FAILED\n" : "all right\n", failures);
    return failures ? 1 : 0;
}
