/* jinja_unicode.c - code point classes and case mapping over utf8proc, named and bounded as Python's str sees them.
 * This file is the template engine's only user of utf8proc.h. */
#include "jinja_unicode.h"

#include <utf8proc.h>

#include "base/utf8.h"

uint32_t jcp_next(const char *text, size_t len, size_t *cp_len)
{
    uint32_t cp = 0;

    if (len > 0 && !((unsigned char)text[0] & 0x80)) {
        *cp_len = 1;
        return (unsigned char)text[0];
    }
    int n = utf8_decode(text, len, &cp);
    if (n <= 0) {
        *cp_len = len > 0 ? 1 : 0;
        return len > 0 ? (unsigned char)text[0] : 0;
    }
    *cp_len = (size_t)n;
    return cp;
}

bool jcp_space(uint32_t cp)
{
    if (cp < 0x80) return (cp >= 9 && cp <= 13) || (cp >= 28 && cp <= 32);
    return cp == 0x85 || cp == 0xA0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 ||
           cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

bool jcp_line_end(uint32_t cp)
{
    return (cp >= 10 && cp <= 13) || (cp >= 28 && cp <= 30) || cp == 0x85 || cp == 0x2028 || cp == 0x2029;
}

static utf8proc_category_t category(uint32_t cp) { return utf8proc_category((utf8proc_int32_t)cp); }

bool jcp_printable(uint32_t cp)
{
    if (cp < 0x7f) return cp >= 0x20;
    switch (category(cp)) {
    case UTF8PROC_CATEGORY_CC: case UTF8PROC_CATEGORY_CF: case UTF8PROC_CATEGORY_CS: case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN: case UTF8PROC_CATEGORY_ZL: case UTF8PROC_CATEGORY_ZP: case UTF8PROC_CATEGORY_ZS:
        return false;
    default:
        return true;
    }
}

bool jcp_alpha(uint32_t cp)
{
    utf8proc_category_t cat = category(cp);

    return cat == UTF8PROC_CATEGORY_LU || cat == UTF8PROC_CATEGORY_LL || cat == UTF8PROC_CATEGORY_LT ||
           cat == UTF8PROC_CATEGORY_LM || cat == UTF8PROC_CATEGORY_LO;
}

bool jcp_decimal(uint32_t cp) { return category(cp) == UTF8PROC_CATEGORY_ND; }

bool jcp_digit(uint32_t cp)
{
    if (jcp_decimal(cp)) return true;
    /* superscripts, subscripts and circled digits: Numeric_Type=Digit */
    return cp == 0xB2 || cp == 0xB3 || cp == 0xB9 || (cp >= 0x2070 && cp <= 0x2079 && cp != 0x2071 && cp != 0x2072 &&
           cp != 0x2073) || (cp >= 0x2080 && cp <= 0x2089) || (cp >= 0x2460 && cp <= 0x2468);
}

bool jcp_numeric(uint32_t cp)
{
    utf8proc_category_t cat = category(cp);

    return cat == UTF8PROC_CATEGORY_ND || cat == UTF8PROC_CATEGORY_NL || cat == UTF8PROC_CATEGORY_NO;
}

bool jcp_upper(uint32_t cp)
{
    return category(cp) == UTF8PROC_CATEGORY_LU || (cp >= 0x2160 && cp <= 0x216F) || (cp >= 0x24B6 && cp <= 0x24CF);
}

bool jcp_lower(uint32_t cp)
{
    if (category(cp) == UTF8PROC_CATEGORY_LL) return true;
    return cp == 0xAA || cp == 0xBA || (cp >= 0x2170 && cp <= 0x217F) || (cp >= 0x24D0 && cp <= 0x24E9);
}

uint32_t jcp_to_upper(uint32_t cp) { return (uint32_t)utf8proc_toupper((utf8proc_int32_t)cp); }
uint32_t jcp_to_lower(uint32_t cp) { return (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp); }
uint32_t jcp_to_title(uint32_t cp) { return (uint32_t)utf8proc_totitle((utf8proc_int32_t)cp); }

size_t jtext_lstrip(const char *text, size_t len)
{
    size_t at = 0, n = 0;

    while (at < len && jcp_space(jcp_next(text + at, len - at, &n))) at += n;
    return at;
}

size_t jtext_rstrip(const char *text, size_t len)
{
    while (len > 0) {
        size_t start = len - 1, n = 0;
        while (start > 0 && len - start < 4 && ((unsigned char)text[start] & 0xC0) == 0x80) start--;
        uint32_t cp = jcp_next(text + start, len - start, &n);
        if (start + n != len || !jcp_space(cp)) break;
        len = start;
    }
    return len;
}
