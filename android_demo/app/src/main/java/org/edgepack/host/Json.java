package org.edgepack.host;

import java.math.BigDecimal;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * JSON as Java's own maps, lists, texts, Long, Double and Boolean. Not Android's org.json, so that
 * everything in this package runs, and is tested, on a desktop.
 */
public final class Json {
    private static final int DEEPEST = 64;

    private final String text;
    private int at;

    private Json(String text) {
        this.text = text;
    }

    /** The value of a text; `Failure` where it is none. */
    public static Object parse(String text) throws Failure {
        Json json = new Json(text);
        Object value = json.value(0);
        json.skip();
        if (json.at != text.length()) throw json.wrong("the end");
        return value;
    }

    /** The object of a text. */
    public static Map<String, Object> parseObject(String text) throws Failure {
        Object value = parse(text);
        if (!(value instanceof Map)) throw new Failure("JSON: no object");
        return object(value);
    }

    /** An object of keys and values in turn. */
    public static Map<String, Object> of(Object... pairs) {
        Map<String, Object> found = new LinkedHashMap<String, Object>();
        for (int i = 0; i < pairs.length; i += 2) found.put((String) pairs[i], pairs[i + 1]);
        return found;
    }

    /** A value that is an object, with its type. */
    @SuppressWarnings("unchecked")
    public static Map<String, Object> object(Object value) {
        return (Map<String, Object>) value;
    }

    /** A text of an object; `Failure` where there is none. */
    public static String text(Map<String, Object> object, String key) throws Failure {
        Object value = object.get(key);
        if (value instanceof String) return (String) value;
        throw new Failure(key + ": no text");
    }

    /** A text of an object, or null. */
    public static String textOrNull(Map<String, Object> object, String key) {
        Object value = object.get(key);
        return value instanceof String ? (String) value : null;
    }

    /** A number of an object, or another one where there is none. */
    public static double number(Map<String, Object> object, String key, double otherwise) {
        Object value = object.get(key);
        return value instanceof Number ? ((Number) value).doubleValue() : otherwise;
    }

    /** A list of an object; empty where there is none. */
    public static List<?> list(Map<String, Object> object, String key) {
        Object value = object.get(key);
        return value instanceof List ? (List<?>) value : new ArrayList<Object>();
    }

    // ------------------------------------------------------------------------ writing

    /** A value as JSON on one line, in ASCII but for letters and signs that need no escape. */
    public static String write(Object value) {
        StringBuilder out = new StringBuilder();
        write(value, out);
        return out.toString();
    }

    private static void write(Object value, StringBuilder out) {
        if (value instanceof Map) {
            char before = '{';
            for (Map.Entry<?, ?> entry : ((Map<?, ?>) value).entrySet()) {
                out.append(before);
                quote((String) entry.getKey(), out);
                out.append(':');
                write(entry.getValue(), out);
                before = ',';
            }
            out.append(before == '{' ? "{}" : "}");
        } else if (value instanceof Iterable) {
            char before = '[';
            for (Object one : (Iterable<?>) value) {
                out.append(before);
                write(one, out);
                before = ',';
            }
            out.append(before == '[' ? "[]" : "]");
        } else if (value instanceof String) {
            quote((String) value, out);
        } else if (value instanceof Double && !isFinite((Double) value)) {
            out.append("null");
        } else if (value == null || value instanceof Number || value instanceof Boolean) {
            out.append(value);
        } else {
            throw new IllegalArgumentException("no JSON: " + value.getClass());
        }
    }

    private static boolean isFinite(double value) {
        return !Double.isNaN(value) && !Double.isInfinite(value);
    }

    /** Half of a surrogate pair alone is escaped, since it has no UTF-8; so are the two line ends
     *  that JavaScript knows and JSON does not. */
    private static void quote(String text, StringBuilder out) {
        out.append('"');
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            boolean pair = Character.isHighSurrogate(c) && i + 1 < text.length()
                    && Character.isLowSurrogate(text.charAt(i + 1));
            if (pair) {
                out.append(c).append(text.charAt(++i));
            } else if (c == '"' || c == '\\') {
                out.append('\\').append(c);
            } else if (c == '\n') {
                out.append("\\n");
            } else if (c < ' ' || c == '\u2028' || c == '\u2029' || Character.isSurrogate(c)) {
                out.append(String.format("\\u%04x", (int) c));
            } else {
                out.append(c);
            }
        }
        out.append('"');
    }

    // ------------------------------------------------------------------------ reading

    private Failure wrong(String wanted) {
        return new Failure("JSON: " + wanted + " was expected at character " + (at + 1));
    }

    private void skip() {
        while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) at++;
    }

    private char peek() {
        return at < text.length() ? text.charAt(at) : '\0';
    }

    private Object value(int depth) throws Failure {
        if (depth > DEEPEST) throw new Failure("JSON: more than " + DEEPEST + " levels");
        skip();
        switch (peek()) {
            case '{': return readObject(depth);
            case '[': return readList(depth);
            case '"': return readText();
            case 't': return word("true", Boolean.TRUE);
            case 'f': return word("false", Boolean.FALSE);
            case 'n': return word("null", null);
            default: return readNumber();
        }
    }

    private Object word(String word, Object value) throws Failure {
        if (!text.startsWith(word, at)) throw wrong("a value");
        at += word.length();
        return value;
    }

    private Map<String, Object> readObject(int depth) throws Failure {
        Map<String, Object> found = new LinkedHashMap<String, Object>();
        for (at++, skip(); peek() != '}'; skip()) {
            if (!found.isEmpty()) expect(',');
            skip();
            if (peek() != '"') throw wrong("a key");
            String key = readText();
            skip();
            expect(':');
            found.put(key, value(depth + 1));
        }
        at++;
        return found;
    }

    private List<Object> readList(int depth) throws Failure {
        List<Object> found = new ArrayList<Object>();
        for (at++, skip(); peek() != ']'; skip()) {
            if (!found.isEmpty()) expect(',');
            found.add(value(depth + 1));
        }
        at++;
        return found;
    }

    private void expect(char c) throws Failure {
        if (peek() != c) throw wrong("'" + c + "'");
        at++;
    }

    private String readText() throws Failure {
        StringBuilder out = new StringBuilder();
        for (at++; ; at++) {
            if (at >= text.length() || text.charAt(at) < ' ') throw wrong("the end of a text");
            char c = text.charAt(at);
            if (c == '"') break;
            out.append(c == '\\' ? readEscape() : c);
        }
        at++;
        return out.toString();
    }

    private char readEscape() throws Failure {
        at++;
        int known = "\"\\/bfnrt".indexOf(peek());
        if (known >= 0 && peek() != '\0') return "\"\\/\b\f\n\r\t".charAt(known);
        if (peek() != 'u' || at + 4 >= text.length()) throw wrong("an escape");
        int code = 0;
        for (int end = at + 4; at < end; ) {
            int digit = Character.digit(text.charAt(++at), 16);
            if (digit < 0 || text.charAt(at) > 'f') throw wrong("four hex digits");
            code = code * 16 + digit;
        }
        return (char) code;
    }

    private Object readNumber() throws Failure {
        int start = at;
        while ("+-.eE0123456789".indexOf(peek()) >= 0 && peek() != '\0') at++;
        String digits = text.substring(start, at);
        if (!digits.matches("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]+)?")) {
            at = start;
            throw wrong("a value");
        }
        if (digits.length() < 19 && digits.matches("-?[0-9]+")) return Long.valueOf(digits);
        if (digits.length() < 400 && digits.matches("-?[0-9]+")) return new BigDecimal(digits);
        return Double.valueOf(digits);
    }
}
