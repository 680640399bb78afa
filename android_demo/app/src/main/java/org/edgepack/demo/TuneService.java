package org.edgepack.demo;

import android.app.Notification;
import android.app.NotificationManager;
import android.app.PendingIntent;
import android.app.Service;
import android.content.Context;
import android.content.Intent;
import android.os.IBinder;
import android.os.PowerManager;
import java.util.Map;
import org.edgepack.host.Json;

/**
 * Keeps the process, and with it the tune worker, while something is trained, and shows it. The
 * training itself is the host's.
 */
public final class TuneService extends Service {
    private static final String CHANNEL = "training", STOP = "org.edgepack.demo.STOP";
    private static final int NOTICE = 1;
    private static final long LONGEST = 6L * 60 * 60 * 1000;

    private static Map<String, Object> state;
    private static boolean isStarted;
    private static TuneService service;
    private PowerManager.WakeLock awake;

    /** Show what a training does; null ends the service. On the main thread. */
    static void show(Context context, Map<String, Object> now) {
        state = now;
        Intent intent = new Intent(context, TuneService.class);
        if (now == null) {
            // one that has not begun ends itself: Android ends apps that stop it before
            if (service != null) service.stopSelf();
            isStarted = false;
        } else if (isStarted) {
            if (service != null) service.keepAwake();
            NotificationManager manager =
                    (NotificationManager) context.getSystemService(NOTIFICATION_SERVICE);
            manager.notify(NOTICE, notice(context));
        } else {
            try {
                Newer.startForegroundService(context, intent);
                isStarted = true;
            } catch (IllegalStateException inBackground) {
                // it trains all the same, for as long as Android lets the process live
            }
        }
    }

    @Override
    public void onCreate() {
        Newer.createChannel(this, CHANNEL, getString(R.string.channel));
        PowerManager power = (PowerManager) getSystemService(POWER_SERVICE);
        awake = power.newWakeLock(PowerManager.PARTIAL_WAKE_LOCK, "edgepack:training");
        awake.setReferenceCounted(false);
    }

    @Override
    public int onStartCommand(Intent intent, int flags, int id) {
        startForeground(NOTICE, notice(this));
        service = this;
        if (intent != null && STOP.equals(intent.getAction())) App.of(this).host().stopTraining();
        if (state == null) stopSelf();
        else keepAwake();
        return START_NOT_STICKY;
    }

    /** Hold the processor while something is trained, not while that waits for battery or heat. */
    private void keepAwake() {
        if (state == null) return;
        if (state.get("waiting") == null) awake.acquire(LONGEST); // anew: not counted, see onCreate
        else if (awake.isHeld()) awake.release();
    }

    @Override
    public void onDestroy() {
        service = null;
        if (awake.isHeld()) awake.release();
    }

    @Override
    public IBinder onBind(Intent intent) {
        return null;
    }

    private static Notification notice(Context context) {
        Map<String, Object> now = state == null ? Json.of("adapter", "") : state;
        int steps = (int) Json.number(now, "steps", 0), step = (int) Json.number(now, "step", 0);
        int unchanged = PendingIntent.FLAG_IMMUTABLE | PendingIntent.FLAG_UPDATE_CURRENT;
        Intent open = new Intent(context, MainActivity.class)
                .addFlags(Intent.FLAG_ACTIVITY_SINGLE_TOP);
        Intent stop = new Intent(context, TuneService.class).setAction(STOP);
        Notification.Builder builder = new Notification.Builder(context)
                .setSmallIcon(R.drawable.notice)
                .setContentTitle(context.getString(R.string.training, now.get("adapter")))
                .setContentText(text(context, now, step, steps))
                .setProgress(steps, step, steps == 0)
                .setOngoing(true)
                .setOnlyAlertOnce(true)
                .setContentIntent(PendingIntent.getActivity(context, 0, open, unchanged))
                .addAction(new Notification.Action.Builder(null, context.getString(R.string.stop),
                        PendingIntent.getService(context, 0, stop, unchanged)).build());
        Newer.setChannel(builder, CHANNEL);
        return builder.build();
    }

    private static String text(Context context, Map<String, Object> now, int step, int steps) {
        if ("battery".equals(now.get("waiting"))) return context.getString(R.string.low_battery);
        if ("heat".equals(now.get("waiting"))) return context.getString(R.string.too_hot);
        if (steps == 0) return context.getString(R.string.preparing);
        int minutes = (int) Math.ceil(Json.number(now, "seconds_left", 0) / 60);
        return context.getResources().getQuantityString(
                R.plurals.left, minutes, step, steps, minutes);
    }
}
