#include "base/utf8.h"

int utf8_decode(const char *text, size_t len, uint32_t *cp)
{
    const unsigned char *s = (const unsigned char *)text;

    if (!len) return 0;
    unsigned char lead = s[0];
    if (lead < 0x80) {
        *cp = lead;
        return 1;
    }
    if (lead < 0xc2 || lead > 0xf4) return -1;
    int need = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    /* the second byte's range excludes overlong forms, surrogates and what lies above U+10FFFF */
    unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    uint32_t value = need == 2 ? lead & 0x1fu : need == 3 ? lead & 0x0fu : lead & 0x07u;
    for (int i = 1; i < need; i++) {
        if ((size_t)i >= len) return -2;
        if (s[i] < low || s[i] > high) return -1;
        low = 0x80;
        high = 0xbf;
        value = value << 6 | (s[i] & 0x3fu);
    }
    *cp = value;
    return need;
}

int utf8_encode(uint32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xc0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3f));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xe0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3f));
        out[2] = (char)(0x80 | (cp & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3f));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3f));
    out[3] = (char)(0x80 | (cp & 0x3f));
    return 4;
}

bool utf8_valid(const char *text, size_t len)
{
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        int n = utf8_decode(text + i, len - i, &cp);
        if (n < 0) return false;
        i += (size_t)n;
    }
    return true;
}

size_t utf8_complete_len(const char *text, size_t len)
{
    size_t back = len < 3 ? len : 3;

    for (size_t i = 1; i <= back; i++) {
        unsigned char c = (unsigned char)text[len - i];
        uint32_t cp;
        if ((c & 0xc0) == 0x80) continue;
        return utf8_decode(text + len - i, i, &cp) == -2 ? len - i : len;
    }
    return len;
}

size_t utf8_count(const char *text, size_t len)
{
    size_t count = 0;

    for (size_t i = 0; i < len; i++) count += ((unsigned char)text[i] & 0xc0) != 0x80;
    return count;
}
