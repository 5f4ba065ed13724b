// SPDX-License-Identifier: MIT
/* WebRTC's noise suppressor as a filter: 16 kHz mono int16 from stdin to
 * stdout in 10 ms hops. usage: peer_webrtc LEVEL, 0 (low) to 3 (very high). */
#include <webrtc/modules/audio_processing/include/audio_processing.h>
#include <webrtc/modules/interface/module_common_types.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

int main(int argc, char **argv) {
    enum { RATE = 16000, HOP = RATE / 100 };
    const int level = argc > 1 ? atoi(argv[1]) : 1;
    std::unique_ptr<webrtc::AudioProcessing> apm(webrtc::AudioProcessing::Create());
    apm->noise_suppression()->set_level(
        static_cast<webrtc::NoiseSuppression::Level>(level));
    apm->noise_suppression()->Enable(true);

    webrtc::AudioFrame hop;
    hop.sample_rate_hz_ = RATE;
    hop.samples_per_channel_ = HOP;
    hop.num_channels_ = 1;
    size_t n;
    while ((n = fread(hop.data_, sizeof(int16_t), HOP, stdin)) > 0) {
        memset(hop.data_ + n, 0, (HOP - n) * sizeof(int16_t));
        if (apm->ProcessStream(&hop) != webrtc::AudioProcessing::kNoError) return 1;
        fwrite(hop.data_, sizeof(int16_t), n, stdout);
    }
    return 0;
}
