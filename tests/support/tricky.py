"""Texts that tokenizers split differently."""

TRICKY = (
    "I'VE we'll they're It'S 'tis ''quoted'' don\u2019t x's'y O'Reilly'd",
    "1 12 123 1234 12345 123456 1234567 a12 a  1234 3.14159 2,718 1e-9 \u0661\u0662\u0663"
    " Ⅷ ½²",
    "CamelCaseHTTPServer snake_case __init__ x.y(z)[0]{1}<2> a/b//c \\n #tag @you $5 100%"
    " f(x)/2\n/3",
    "--==>>~~$$++``^^||&&!!??;;::,,.. ....\u2026 \u201Cquotes\u201D \u2018single\u2019 "
    "\u2014dash\u2013 «»",
    "今日は天気がいい。カタカナ你好\uFF0C世界\uFF01 한국어 오늘 ㄱㄴ ㄅㄆ ｶﾅ \uFF21\uFF22"
    " ⼀ \U00020000\U0002A6D6\uF900\u8C48",
    "สว\u0E31สด\u0E35คร\u0E31บ ស\u17BDស\u17D2ត\u17B8 မ\u103Cန\u103Aस\u0947 नमस\u094Dत"
    "\u0947। ব\u09BE\u0982ল\u09BE \u0645\u0631\u062D\u0628\u0627، \u0628\u0627\u0644"
    "\u0639\u0627\u0644\u0645\u06D4 \u05E9\u05DC\u05D5\u05DD",
    "С\u0435г\u043Eдня Х\u043Eл\u043EдныйВ\u0435ч\u0435р Ελληνικά ÉCOLEécole Größe ǅ ʰ ſ "
    "ẞ İı",
    "e\u0301a\u0308 n\u0303\u0303 \u0301x a\u0301b\u0302C\u0303D \u1100\u1161\u11A8",
    "a\u00A0b\u00A0\u00A0c\u3000d \u3000e\u2003\u2028f\u0085g\u200Bh\uFEFFi\u200Dj",
    "\u3000、。\u3000 \u2000x \u1680y",
    "tab\tb\t\tc \t d\r\ne\r\n\r\nf\rg\n\n\nh \n  \n i  \n\n  j   ",
    "    return  x\n        if y:\n\t\tpass\n" + " " * 70 + "z" + " " * 9 + "\n" + " " * 513 + "w",
    "\x00\x01\x07\x0b\x0c\x1b\x1c\x1f\x7f \x01 a\x02b",
    "\U0001F917\U0001F3F3\uFE0F\u200D\U0001F308 \U0001F44D\U0001F3FD\U0001F44D ™© £€¥ ∑∫",
    "<sentinel:12> IMGIMGABZ IMGIMGABCDEFZ x<|user|>  y <|endoftext|>\n the whole wholes",
    "", " ", "  ", "\n", "\n\n", "x", " x", "'", " '", "1", " 1",
)  # fmt: skip
