"""The shell scripts of `_remote`, with places for values; POSIX, for coreutils, busybox, toybox."""

OPEN = r"""
mkdir -p {root} && cd {root} && pwd -P || exit 20
{{
find scratch -mindepth 1 -maxdepth 1 -mmin +1440 -exec rm -rf {{}} +
find . -name '*.partial' -mmin +1440 -exec rm -f {{}} +
}} 2>/dev/null
true
"""
"""Print the folder, as a path without links. What is a day old is of a process that was killed."""

DIGESTS = r"""
for place in {places}; do
    [ -f "$place" ] && sum=$(sha256sum <"$place") && echo "${{sum%% *}}" || echo -
done
"""

SEND = r"""
place={place}
partial=$place.partial
mkdir -p "${{place%/*}}" && cat >"$partial" && sum=$(sha256sum <"$partial") \
    && [ "${{sum%% *}}" = {digest} ] && chmod {mode} "$partial" && mv -f "$partial" "$place" && exit
rm -f "$partial"
rmdir "${{place%/*}}" 2>/dev/null
exit 21
"""
"""The file is the input. Nothing is left of one that did not come whole."""

CLEAR = r"""
size=$(du -sk {folder}) && rm -rf {folder} && echo ${{size%%[!0-9]*}}
"""

NOT_STARTED = {22: "no such program", 23: "not executable, or permission denied"}
RUN = r"""
set -- {words}
case $1 in
*/*)
    [ -e "$1" ] || exit 22
    [ -x "$1" ] && [ ! -d "$1" ] || exit 23;;
*)
    command -v "$1" >/dev/null || exit 22;;
esac
scratch={scratch}
mkdir -p "$scratch/here" && cd "$scratch/here" || exit 20
exec 3<&0 </dev/null
group=$(command -v setsid)
read -r begin _ </proc/uptime
$group "$@" >../out 2>../err 3<&- &
child=$!
trap '' PIPE HUP
(
    while sleep 0.2; do
        while read -r key value _; do
            [ "$key" = VmHWM: ] && echo "$value" >>../peak && break
        done </proc/$child/status || break
    done
) >/dev/null 2>&1 3<&- &
poll=$!
(
    read -r _ <&3
    kill -9 -$child
    kill -9 $child
) >/dev/null 2>&1 &
watch=$!
{{ wait $child; code=$?; }} 2>/dev/null
read -r end _ </proc/uptime
kill -9 $poll $watch  # mksh, which is Android's, does not die of less while it reads
{{ wait $poll $watch; }} 2>/dev/null
peak=$(tail -n 1 ../peak 2>/dev/null)
size=$(wc -c <../out) && echo "$code $begin $end ${{peak:--}}" $size && cat ../out ../err
cd / && rm -rf "$scratch" && rmdir "${{scratch%/*}}" 2>/dev/null
true
"""
"""Print a line (exit code, begin and end in seconds since the start of the system, peak in KiB or
``-``, bytes of stdout), then stdout and stderr. The end of the input, which is also that of the
connection, kills the command and all that it started. The scratch folder is removed at last.

Standard output and error are files first: what stays in the background would keep a pipe open.
"""
