/* SPDX-License-Identifier: MIT */
#include "dsp/nearest.h"

#include <string.h>

int nearest_distance(const char *a, const char *b)
{
    int rows[3][NEAREST_FAR + 1];
    size_t n = strlen(a), m = strlen(b);
    if (n > NEAREST_FAR || m > NEAREST_FAR) {
        return NEAREST_FAR;
    }
    for (size_t j = 0; j <= m; j++) {
        rows[0][j] = (int)j;
    }
    for (size_t i = 1; i <= n; i++) {
        int *row = rows[i % 3], *above = rows[(i + 2) % 3], *two_above = rows[(i + 1) % 3];
        row[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int least = above[j - 1] + (a[i - 1] != b[j - 1]);
            least = above[j] + 1 < least ? above[j] + 1 : least;
            least = row[j - 1] + 1 < least ? row[j - 1] + 1 : least;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && two_above[j - 2] + 1 < least) {
                least = two_above[j - 2] + 1;
            }
            row[j] = least;
        }
    }
    return rows[n % 3][m];
}

int nearest_slips(const char *word)
{
    return 1 + (int)strlen(word) / 5;
}
